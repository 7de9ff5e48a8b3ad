"""Owns the REST routes of files.

It must not know SQL, storage or rules; the service does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile

from tunesmith_server.config import MEBIBYTE
from tunesmith_server.db.tables import FileRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.files.schemas import DeletedFile, FileList, FileObject
from tunesmith_server.files.service import MAX_PAGE, FilesService
from tunesmith_server.http_auth import CurrentPrincipal


def create_router(service: FilesService) -> APIRouter:
    """Routes under /v1/files."""
    router = APIRouter(prefix="/v1/files", tags=["files"])

    @router.post("")
    async def create_file(request: Request, principal: CurrentPrincipal) -> FileObject:
        # Read here rather than by a parameter, because parameters are read before the key is checked.
        async with request.form(max_files=1, max_fields=100) as form:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise _missing("file", "Send the file as the multipart form field `file`, with a file name.")
            if not isinstance(purpose, str):
                raise _missing("purpose", "Send the form field `purpose`, for example `fine-tune`.")
            row = await service.create(principal, filename=file.filename or "", purpose=purpose, chunks=_chunks(file))
        return _file_object(row)

    @router.get("")
    async def list_files(
        principal: CurrentPrincipal,
        limit: int = MAX_PAGE,
        after: str = "",
        order: str = "desc",
        purpose: str = "",
        sha256: str = "",
    ) -> FileList:
        page = await service.list(principal, limit=limit, after=after, order=order, purpose=purpose, sha256=sha256)
        data = [_file_object(row) for row in page.files]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return FileList(data=data, first_id=first, last_id=last, has_more=page.has_more)

    @router.get("/{file_id}")
    async def get_file(file_id: str, principal: CurrentPrincipal) -> FileObject:
        return _file_object(await service.get(principal, file_id))

    @router.delete("/{file_id}")
    async def delete_file(file_id: str, principal: CurrentPrincipal) -> DeletedFile:
        await service.delete(principal, file_id)
        return DeletedFile(id=file_id)

    @router.get("/{file_id}/content")
    async def get_content(file_id: str, principal: CurrentPrincipal) -> StreamingResponse:
        row, chunks = await service.open(principal, file_id)
        headers = {
            "content-length": str(row.bytes),
            "content-disposition": _disposition(row.filename),
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)

    return router


def _missing(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError("missing_required_parameter", message, param=param)


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(MEBIBYTE):
        yield chunk


def _file_object(row: FileRow) -> FileObject:
    return FileObject(
        id=row.id,
        bytes=row.bytes,
        created_at=row.created_at,
        filename=row.filename,
        purpose=row.purpose,
        status=row.status,
        sha256=row.sha256,
    )


def _disposition(filename: str) -> str:
    """The name in both forms of RFC 6266: plain ASCII for old clients, exact for all others."""
    plain = "".join(char if (char.isascii() and char.isalnum()) or char in "._- " else "_" for char in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
