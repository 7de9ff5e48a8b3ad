"""Owns files that arrive in parts: begun, filled in any order and in parallel, completed once, or given up.

It must not know a transport. Parts lie in object storage, so that any replica can take one and complete the whole.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FileRow, UploadPartRow, UploadRow
from tunesmith_server.errors import ConflictError, InvalidRequestError, NotFoundError, TunesmithError, UnavailableError
from tunesmith_server.failpoints import reach
from tunesmith_server.files import drafts, limits, repository, upload_repository
from tunesmith_server.files.intake import Intake, NewFile
from tunesmith_server.files.upload_repository import UploadStatus
from tunesmith_server.ids import new_id
from tunesmith_server.projects.quotas import require_storage
from tunesmith_server.storage.base import ObjectNotFoundError

PARTS_FOLDER = "uploads"

_LIFETIME_SECONDS = 3600
_MAX_PARTS = 10_000
_MD5 = re.compile(r"[0-9a-f]{32}")
_MIME_TYPE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}")


@dataclass(frozen=True, slots=True)
class UploadView:
    """An upload as its owner sees it: `status` knows the time, `file` is there once it is completed."""

    row: UploadRow
    status: UploadStatus
    file: FileRow | None = None
    parts: tuple[UploadPartRow, ...] = ()


class UploadsService:
    """Operations on the uploads of a project."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._intake = Intake(core)
        self._completing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(
        self,
        principal: Principal,
        *,
        filename: str,
        purpose: str,
        size: int,
        mime_type: str,
        expires_after: limits.ExpiresAfter | None = None,
    ) -> UploadView:
        """Begins an upload of `size` bytes; raises InvalidRequestError, PayloadTooLargeError, QuotaExceededError."""
        limits.check_purpose(purpose)
        lifetime = limits.lifetime_seconds(expires_after)
        if size < 1:
            raise InvalidRequestError("invalid_value", "`bytes` must be at least 1.", param="bytes")
        limit = limits.upload_limit(self._core.settings.max_chunked_upload_bytes)
        if size > limit.bytes:
            raise limit.refusal()
        if not _MIME_TYPE.fullmatch(mime_type):
            message = "`mime_type` must be 1 to 255 plain characters, for example text/jsonl."
            raise InvalidRequestError("invalid_value", message, param="mime_type")
        now = self._now()
        row = UploadRow(
            id=new_id("upload_"),
            project_id=principal.project_id,
            filename=limits.display_name(filename),
            purpose=purpose,
            mime_type=mime_type,
            bytes=size,
            status=UploadStatus.PENDING.value,
            file_expires_after=lifetime,
            created_at=now,
            expires_at=now + _LIFETIME_SECONDS,
        )
        async with self._core.database.write() as session:
            await require_storage(session, self._core.settings, principal.project_id, size)
            await upload_repository.insert(session, row)
        return UploadView(row, UploadStatus.PENDING)

    async def get(self, principal: Principal, upload_id: str) -> UploadView:
        """The upload with the parts that have arrived, for a client that goes on; raises NotFoundError."""
        async with self._core.database.read() as session:
            # Before the row: where that is pending still, these are the parts, and not what its end left of them.
            parts = await upload_repository.list_parts(session, upload_id)
            row = await _require(session, principal, upload_id)
            file = await repository.get_live(session, row.project_id, row.file_id, self._now()) if row.file_id else None
        status = self._status(row)
        return UploadView(row, status, file, tuple(parts) if status == UploadStatus.PENDING else ())

    async def require_pending(self, principal: Principal, upload_id: str) -> UploadRow:
        """The upload if it still takes parts; raises NotFoundError or ConflictError."""
        # Without its parts, which may be thousands: this is asked for each of them.
        async with self._core.database.read() as session:
            row = await _require(session, principal, upload_id)
        if self._status(row) != UploadStatus.PENDING:
            raise _ended(upload_id, self._status(row))
        return row

    async def add_part(self, principal: Principal, upload_id: str, chunks: AsyncIterator[bytes]) -> UploadPartRow:
        """Stores a part.

        Raises ConflictError for an ended upload, PayloadTooLargeError, InvalidRequestError, QuotaExceededError.
        """
        upload = await self.require_pending(principal, upload_id)
        part_id = new_id("part_")
        limit = limits.part_limit(self._core.settings.max_part_bytes)
        async with drafts.receive(self._core.settings.spool, chunks, limit) as draft:
            if draft.size == 0:
                raise InvalidRequestError("empty_part", "The part has no bytes.", param="data")
            part = UploadPartRow(
                id=part_id,
                upload_id=upload_id,
                bytes=draft.size,
                sha256=draft.sha256,
                storage_key=f"{PARTS_FOLDER}/{principal.project_id}/{upload_id}/{part_id}",
                created_at=self._now(),
            )
            await self._core.store.put_file(part.storage_key, draft.path)
        try:
            await self._enter(part, upload)
        except TunesmithError:
            with suppress(UnavailableError):
                await self._core.store.delete(part.storage_key)
            raise
        return part

    async def complete(
        self, principal: Principal, upload_id: str, part_ids: Sequence[str], md5: str | None = None
    ) -> UploadView:
        """Joins the parts in this order into a file; a repeated call gives the same answer.

        Raises InvalidRequestError for wrong parts, or for a dataset with problems, which ends the upload.
        """
        # Two calls at once would do the same long work twice; between replicas the database decides.
        async with self._completing.setdefault(upload_id, asyncio.Lock()):
            upload = await self.get(principal, upload_id)
            if upload.status == UploadStatus.COMPLETED:
                return upload
            if upload.status != UploadStatus.PENDING:
                raise _ended(upload_id, upload.status)
            parts = _chosen(upload, part_ids)
            try:
                await self._join(upload.row, parts, _checked_md5(md5))
            except InvalidRequestError as error:
                if error.problems:
                    # The content is at fault: no order of these parts can become a good file.
                    await self._end(upload_id, UploadStatus.CANCELLED)
                raise
            except ConflictError:
                upload = await self.get(principal, upload_id)
                if upload.status == UploadStatus.PENDING:
                    raise
                if upload.status != UploadStatus.COMPLETED:
                    raise _ended(upload_id, upload.status) from None
                return upload
            await self._remove_parts(upload_id)
        return await self.get(principal, upload_id)

    async def cancel(self, principal: Principal, upload_id: str) -> UploadView:
        """Gives the upload up; cancelling twice is the same. Raises NotFoundError or ConflictError."""
        upload = await self.get(principal, upload_id)
        if upload.status == UploadStatus.PENDING:
            await self._end(upload_id, UploadStatus.CANCELLED)
            upload = await self.get(principal, upload_id)
        if upload.status != UploadStatus.CANCELLED:
            raise _ended(upload_id, upload.status)
        return upload

    async def _enter(self, part: UploadPartRow, upload: UploadRow) -> None:
        # Room for parts that were sent again because their answer was lost, and no more than that.
        room = 2 * (upload.bytes + self._core.settings.max_part_bytes)
        async with self._core.database.write() as session:
            if not await upload_repository.insert_part(session, part, self._now()):
                row = await upload_repository.get(session, upload.project_id, upload.id)
                raise _ended(upload.id, self._status(row or upload))
            count, stored = await upload_repository.count_parts(session, upload.id)
            if count > _MAX_PARTS or stored > room:
                message = "The upload has far more parts than it announced bytes. Complete or cancel it."
                raise InvalidRequestError("too_many_parts", message, param="data")
            # Counted with this part; what other uploads may have taken meanwhile was free when this one began.
            await require_storage(session, self._core.settings, upload.project_id, 0)

    async def _join(self, upload: UploadRow, parts: Sequence[UploadPartRow], md5: str | None) -> None:
        new = NewFile(upload.project_id, upload.filename, upload.purpose, upload.file_expires_after, md5)
        limit = limits.upload_limit(upload.bytes)
        async with (
            self._intake.stored(new, self._content(parts), limit) as file,
            self._core.database.write() as session,
        ):
            if not await upload_repository.finish(session, upload.id, UploadStatus.COMPLETED):
                raise ConflictError("upload_ended", f"The upload {upload.id} ended while it was completed.")
            # From here on its parts no longer count, and the file does.
            await require_storage(session, self._core.settings, upload.project_id, file.bytes)
            await repository.insert(session, file)
            await upload_repository.set_file(session, upload.id, file.id)
            reach("upload.writing")
        reach("upload.written")

    async def _content(self, parts: Sequence[UploadPartRow]) -> AsyncIterator[bytes]:
        for part in parts:
            try:
                async for chunk in self._core.store.read(part.storage_key):
                    yield chunk
            except ObjectNotFoundError:
                message = f"The bytes of the part {part.id} are gone. Start the upload again."
                raise ConflictError("upload_parts_lost", message) from None

    async def _end(self, upload_id: str, to: UploadStatus) -> None:
        async with self._core.database.write() as session:
            ended = await upload_repository.finish(session, upload_id, to)
        if ended:
            await self._remove_parts(upload_id)

    async def _remove_parts(self, upload_id: str) -> None:
        """At once if the store can be reached; the upload has ended anyway, and the sweep comes round."""
        with suppress(UnavailableError):
            await remove_parts(self._core, upload_id)

    def _status(self, row: UploadRow) -> UploadStatus:
        expired = row.status == UploadStatus.PENDING and row.expires_at <= self._now()
        return UploadStatus.EXPIRED if expired else UploadStatus(row.status)

    def _now(self) -> int:
        return int(self._core.clock())


async def remove_parts(core: Core, upload_id: str) -> None:
    """Removes the parts of an ended upload; may be cut off and repeated."""
    async with core.database.read() as session:
        parts = await upload_repository.list_parts(session, upload_id)
    for part in parts:
        await core.store.delete(part.storage_key)
    # Rows last: one that is left is found again, an object without a row only as an orphan.
    async with core.database.write() as session:
        await upload_repository.delete_parts(session, upload_id)


async def _require(session: AsyncSession, principal: Principal, upload_id: str) -> UploadRow:
    row = await upload_repository.get(session, principal.project_id, upload_id)
    if row is None:
        message = f"There is no upload {upload_id[:80]!r} in this project."
        raise NotFoundError("upload_not_found", message, param="upload_id")
    return row


def _chosen(upload: UploadView, part_ids: Sequence[str]) -> list[UploadPartRow]:
    """The parts in the caller's order; raises InvalidRequestError unless they are the file's bytes."""
    if not part_ids:
        message = "Send the ids of the parts in the order of the file's content."
        raise InvalidRequestError("missing_required_parameter", message, param="part_ids")
    known = {part.id: part for part in upload.parts}
    seen: set[str] = set()
    for part_id in part_ids:
        if part_id in seen:
            message = f"The part {part_id[:80]!r} is named twice. Name each part once."
            raise InvalidRequestError("duplicate_part", message, param="part_ids")
        if part_id not in known:
            message = f"The upload has no part {part_id[:80]!r}. GET /v1/uploads/{upload.row.id} lists its parts."
            raise InvalidRequestError("part_not_found", message, param="part_ids")
        seen.add(part_id)
    parts = [known[part_id] for part_id in part_ids]
    total = sum(part.bytes for part in parts)
    if total != upload.row.bytes:
        message = f"The parts have {total} bytes together, but the upload was announced with {upload.row.bytes}."
        raise InvalidRequestError("upload_size_mismatch", message, param="part_ids")
    return parts


def _checked_md5(md5: str | None) -> str | None:
    if md5 is None or _MD5.fullmatch(md5.lower()):
        return None if md5 is None else md5.lower()
    raise InvalidRequestError("invalid_value", "`md5` must be 32 hexadecimal digits.", param="md5")


def _ended(upload_id: str, status: UploadStatus) -> ConflictError:
    message = f"The upload {upload_id} is {status}. Start a new one with POST /v1/uploads."
    return ConflictError(f"upload_{status}", message, param="upload_id")
