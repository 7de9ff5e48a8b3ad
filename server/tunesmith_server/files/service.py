"""Owns what can be done with files: take in, list, read, delete.

It must not know a transport or how training reads a file.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FileRow
from tunesmith_server.errors import ConflictError, InvalidRequestError, NotFoundError
from tunesmith_server.failpoints import reach
from tunesmith_server.files import repository
from tunesmith_server.files.intake import Intake, NewFile
from tunesmith_server.files.limits import ExpiresAfter, check_purpose, file_limit, lifetime_seconds
from tunesmith_server.projects.quotas import require_storage

MAX_PAGE = 10_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FilePage:
    """Part of a list of files; of each what users see of it."""

    files: Sequence[Row[Any]]
    has_more: bool


class FilesService:
    """Operations on the files of a project."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._intake = Intake(core)

    async def create(
        self,
        principal: Principal,
        *,
        filename: str,
        purpose: str,
        chunks: AsyncIterator[bytes],
        expires_after: ExpiresAfter | None = None,
    ) -> FileRow:
        """Stores a file; a dataset only after every line was found good.

        Raises InvalidRequestError with all that is wrong, QuotaExceededError, PayloadTooLargeError.
        """
        check_purpose(purpose)
        new = NewFile(principal.project_id, filename, purpose, lifetime_seconds(expires_after))
        limit = file_limit(self._core.settings.max_upload_bytes)
        async with self._intake.stored(new, chunks, limit) as row, self._core.database.write() as session:
            await require_storage(session, self._core.settings, principal.project_id, row.bytes)
            await repository.insert(session, row)
            reach("file.writing")
        return row

    async def get(self, principal: Principal, file_id: str) -> FileRow:
        """The file; raises NotFoundError, also once it has expired."""
        async with self._core.database.read() as session:
            row = await repository.get_live(session, principal.project_id, file_id, self._now())
        if row is None:
            raise NotFoundError("file_not_found", f"There is no file {file_id!r} in this project.", param="file_id")
        return row

    async def list(
        self,
        principal: Principal,
        *,
        limit: int = MAX_PAGE,
        after: str = "",
        order: str = "desc",
        purpose: str = "",
        sha256: str = "",
    ) -> FilePage:
        """A page of the project's files; raises InvalidRequestError for an unknown cursor or order."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequestError("invalid_value", f"`limit` must be between 1 and {MAX_PAGE}.", param="limit")
        if order not in ("asc", "desc"):
            raise InvalidRequestError("invalid_value", "`order` must be asc or desc.", param="order")
        async with self._core.database.read() as session:
            cursor = await repository.get_cursor(session, principal.project_id, after) if after else None
            if after and cursor is None:
                message = f"There is no file {after!r} to continue after. Start again without `after`."
                raise InvalidRequestError("invalid_cursor", message, param="after")
            query = repository.FileQuery(limit + 1, self._now(), cursor, order == "asc", purpose, sha256)
            rows = await repository.list_page(session, principal.project_id, query)
        return FilePage(rows[:limit], len(rows) > limit)

    async def open(self, principal: Principal, file_id: str) -> tuple[FileRow, AsyncIterator[bytes]]:
        """The file and its content in chunks of at most 1 MiB; raises NotFoundError."""
        row = await self.get(principal, file_id)
        if await self._core.store.size(row.storage_key) is None:
            _log.error("the object of a file is gone", extra={"fields": {"file_id": row.id}})
            raise NotFoundError("file_content_lost", f"The content of file {row.id!r} is gone. Upload it again.")
        return row, self._core.store.read(row.storage_key)

    async def delete(self, principal: Principal, file_id: str) -> None:
        """Deletes the file and its bytes; raises NotFoundError, or ConflictError while a job needs it."""
        row = await self.get(principal, file_id)
        async with self._core.database.write() as session:
            job_id = await repository.find_job_using(session, row.id)
            if job_id is not None:
                message = f"Job {job_id} still needs this file. Cancel the job or wait until it has ended."
                raise ConflictError("file_in_use", message, param="file_id")
            await repository.mark_deleted(session, row.id, self._now())
        await self._core.store.delete(row.storage_key)

    def _now(self) -> int:
        return int(self._core.clock())
