"""Owns what can be done with files: take in, check, list, read, delete.

It must not know a transport or how training reads a file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FileRow
from tunesmith_server.errors import ConflictError, InvalidRequestError, NotFoundError
from tunesmith_server.files import repository, uploads
from tunesmith_server.files.dataset_check import DatasetReport, check_dataset
from tunesmith_server.ids import new_id

MAX_PAGE = 10_000

_PURPOSE = "fine-tune"
_FOLDER = "files"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FilePage:
    """Part of a list of files."""

    files: list[FileRow]
    has_more: bool


class FilesService:
    """Operations on the files of a project."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._drafts = core.settings.home / "uploads"

    async def create(
        self, principal: Principal, *, filename: str, purpose: str, chunks: AsyncIterator[bytes]
    ) -> FileRow:
        """Stores a dataset after every line was found good; raises InvalidRequestError with all that is wrong."""
        if purpose != _PURPOSE:
            message = f"Files can be uploaded for the purpose {_PURPOSE!r} only."
            raise InvalidRequestError("invalid_purpose", message, param="purpose")
        async with uploads.receive(self._drafts, chunks, self._core.settings.max_upload_bytes) as upload:
            report = await asyncio.to_thread(_check, upload.path)
            if report.problem_count:
                raise _refusal(report)
            file_id = new_id("file-")
            row = FileRow(
                id=file_id,
                project_id=principal.project_id,
                filename=uploads.display_name(filename),
                purpose=purpose,
                bytes=upload.size,
                sha256=upload.sha256,
                status="processed",
                rows=report.rows,
                storage_key=f"{_FOLDER}/{principal.project_id}/{file_id}",
                created_at=int(self._core.clock()),
            )
            # Object first: a crash in between leaves bytes that the sweep removes, never a row without bytes.
            await self._core.store.put_file(row.storage_key, upload.path)
        async with self._core.database.write() as session:
            await repository.insert(session, row)
        return row

    async def get(self, principal: Principal, file_id: str) -> FileRow:
        """The file; raises NotFoundError."""
        async with self._core.database.read() as session:
            row = await repository.get(session, principal.project_id, file_id)
        if row is None:
            raise NotFoundError("file_not_found", f"There is no file {file_id!r} in this project.", param="file_id")
        return row

    async def sweep_orphans(self, grace_seconds: float = 60) -> list[str]:
        """Removes uploaded objects that no row points at and returns their keys; to be called at start.

        An object that is orphaned both before and after the grace belongs to a server that died: a living one
        writes the row right after the object.
        """
        await asyncio.to_thread(uploads.remove_stale, self._drafts)
        suspects = await self._unowned(await self._core.store.list(f"{_FOLDER}/"))
        if suspects:
            await asyncio.sleep(grace_seconds)
        orphans = sorted(await self._unowned(suspects))
        for key in orphans:
            await self._core.store.delete(key)
            _log.info("removed an object without a file", extra={"fields": {"key": key}})
        return orphans

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
            query = repository.FileQuery(limit + 1, cursor, order == "asc", purpose, sha256)
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
            await repository.mark_deleted(session, row.id, int(self._core.clock()))
        await self._core.store.delete(row.storage_key)

    async def _unowned(self, keys: Collection[str]) -> set[str]:
        async with self._core.database.read() as session:
            return await repository.unowned_keys(session, keys)


def _check(path: Path) -> DatasetReport:
    with path.open("rb") as file:
        return check_dataset(file)


def _refusal(report: DatasetReport) -> InvalidRequestError:
    first, more = report.problems[0], report.problem_count - 1
    message = first.message
    if more:
        message += f" There {'is 1 more problem' if more == 1 else f'are {more} more problems'} in the file."
    return InvalidRequestError(first.code, message, param="file", problems=report.problems)
