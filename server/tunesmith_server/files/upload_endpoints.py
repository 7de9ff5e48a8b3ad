"""Owns the REST routes of uploads.

It must not know SQL, storage or rules; the service does.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from tunesmith_server.files.forms import BYTES, chunks_of, described, required_file
from tunesmith_server.files.limits import ExpiresAfter
from tunesmith_server.files.upload_schemas import (
    CompleteUpload,
    CreateUpload,
    PartObject,
    UploadObject,
    UploadWithParts,
)
from tunesmith_server.files.upload_service import UploadsService
from tunesmith_server.files.views import part_object, upload_object
from tunesmith_server.http_auth import CurrentPrincipal


def create_router(service: UploadsService) -> APIRouter:
    """Routes under /v1/uploads."""
    router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

    @router.post("")
    async def create_upload(body: CreateUpload, principal: CurrentPrincipal) -> UploadObject:
        after = body.expires_after
        upload = await service.create(
            principal,
            filename=body.filename,
            purpose=body.purpose,
            size=body.bytes,
            mime_type=body.mime_type,
            expires_after=ExpiresAfter(after.anchor, after.seconds) if after is not None else None,
        )
        return upload_object(upload)

    @router.get("/{upload_id}")
    async def get_upload(upload_id: str, principal: CurrentPrincipal) -> UploadWithParts:
        upload = await service.get(principal, upload_id)
        parts = [part_object(part) for part in upload.parts]
        return UploadWithParts(**upload_object(upload).model_dump(), parts=parts)

    @router.post("/{upload_id}/parts", openapi_extra=described({"data": BYTES}, {}))
    async def add_part(upload_id: str, request: Request, principal: CurrentPrincipal) -> PartObject:
        # A part of an upload that takes none is refused before its bytes are read.
        await service.require_pending(principal, upload_id)
        async with request.form(max_files=1, max_fields=10) as form:
            data = required_file(form, "data")
            return part_object(await service.add_part(principal, upload_id, chunks_of(data)))

    @router.post("/{upload_id}/complete")
    async def complete_upload(upload_id: str, body: CompleteUpload, principal: CurrentPrincipal) -> UploadObject:
        return upload_object(await service.complete(principal, upload_id, body.part_ids, body.md5))

    @router.post("/{upload_id}/cancel")
    async def cancel_upload(upload_id: str, principal: CurrentPrincipal) -> UploadObject:
        return upload_object(await service.cancel(principal, upload_id))

    return router
