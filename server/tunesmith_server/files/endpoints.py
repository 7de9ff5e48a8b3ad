"""Owns the REST routes of files.

It must not know SQL, storage or rules; the service does.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from tunesmith_server.files.forms import BYTES, chunks_of, described, expires_after, required_file, required_text
from tunesmith_server.files.schemas import DeletedFile, FileList, FileObject
from tunesmith_server.files.service import MAX_PAGE, FilesService
from tunesmith_server.files.views import CONTENT_TYPES, content_headers, file_list, file_object
from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.long_lists import encoded

_FORM = described(
    {"file": BYTES, "purpose": {"type": "string"}},
    {"expires_after[anchor]": {"type": "string"}, "expires_after[seconds]": {"type": "integer"}},
)
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes.", "content": {kind: {"schema": BYTES} for kind in CONTENT_TYPES}}
}


def create_router(service: FilesService) -> APIRouter:
    """Routes under /v1/files."""
    router = APIRouter(prefix="/v1/files", tags=["files"])

    @router.post("", openapi_extra=_FORM)
    async def create_file(request: Request, principal: CurrentPrincipal) -> FileObject:
        async with request.form(max_files=1, max_fields=100) as form:
            file = required_file(form, "file")
            row = await service.create(
                principal,
                filename=file.filename or "",
                purpose=required_text(form, "purpose", "fine-tune"),
                chunks=chunks_of(file),
                expires_after=expires_after(form),
            )
        return file_object(row)

    @router.get("", response_model=FileList)
    async def list_files(
        principal: CurrentPrincipal,
        limit: int = MAX_PAGE,
        after: str = "",
        order: str = "desc",
        purpose: str = "",
        sha256: str = "",
    ) -> Response:
        page = await service.list(principal, limit=limit, after=after, order=order, purpose=purpose, sha256=sha256)
        return await encoded(lambda: file_list(page))

    @router.get("/{file_id}")
    async def get_file(file_id: str, principal: CurrentPrincipal) -> FileObject:
        return file_object(await service.get(principal, file_id))

    @router.delete("/{file_id}")
    async def delete_file(file_id: str, principal: CurrentPrincipal) -> DeletedFile:
        await service.delete(principal, file_id)
        return DeletedFile(id=file_id)

    @router.get("/{file_id}/content", response_class=StreamingResponse, responses=_CONTENT)
    async def get_content(file_id: str, principal: CurrentPrincipal) -> StreamingResponse:
        row, chunks = await service.open(principal, file_id)
        return StreamingResponse(chunks, headers=content_headers(row))

    return router
