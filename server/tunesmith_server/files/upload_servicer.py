"""Owns the gRPC twin of the upload routes.

It must not know SQL, storage or rules; the service does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from tunesmith_proto.files.v1 import uploads_pb2, uploads_pb2_grpc
from tunesmith_server.auth import Authenticator, Principal, authorization_of
from tunesmith_server.db.tables import UploadPartRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.files.servicer import expires_after, file_message
from tunesmith_server.files.upload_service import UploadsService, UploadView

Context = grpc.aio.ServicerContext[Any, Any]


class UploadsServicer(uploads_pb2_grpc.UploadsServiceServicer):
    """Implements tunesmith.files.v1.UploadsService."""

    def __init__(self, service: UploadsService, authenticator: Authenticator) -> None:
        self._service = service
        self._authenticator = authenticator

    async def CreateUpload(  # noqa: N802
        self, request: uploads_pb2.CreateUploadRequest, context: Context
    ) -> uploads_pb2.CreateUploadResponse:
        """Begins an upload."""
        upload = await self._service.create(
            await self._principal(context),
            filename=request.filename,
            purpose=request.purpose,
            size=request.bytes,
            mime_type=request.mime_type,
            expires_after=expires_after(request),
        )
        return uploads_pb2.CreateUploadResponse(upload=_upload(upload))

    async def AddUploadPart(  # noqa: N802
        self, requests: AsyncIterator[uploads_pb2.AddUploadPartRequest], context: Context
    ) -> uploads_pb2.AddUploadPartResponse:
        """Takes a part in."""
        principal = await self._principal(context)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "upload_id":
            message = "Send `upload_id` in the first message."
            raise InvalidRequestError("missing_required_parameter", message, param="upload_id")
        part = await self._service.add_part(principal, first.upload_id, _chunks(requests))
        return uploads_pb2.AddUploadPartResponse(part=_part(part))

    async def CompleteUpload(  # noqa: N802
        self, request: uploads_pb2.CompleteUploadRequest, context: Context
    ) -> uploads_pb2.CompleteUploadResponse:
        """Joins the parts."""
        upload = await self._service.complete(
            await self._principal(context), request.upload_id, request.part_ids, request.md5 or None
        )
        return uploads_pb2.CompleteUploadResponse(upload=_upload(upload))

    async def CancelUpload(  # noqa: N802
        self, request: uploads_pb2.CancelUploadRequest, context: Context
    ) -> uploads_pb2.CancelUploadResponse:
        """Gives an upload up."""
        upload = await self._service.cancel(await self._principal(context), request.upload_id)
        return uploads_pb2.CancelUploadResponse(upload=_upload(upload))

    async def GetUpload(  # noqa: N802
        self, request: uploads_pb2.GetUploadRequest, context: Context
    ) -> uploads_pb2.GetUploadResponse:
        """Describes an upload and its parts."""
        upload = await self._service.get(await self._principal(context), request.upload_id)
        message = _upload(upload)
        message.parts.extend(_part(part) for part in upload.parts)
        return uploads_pb2.GetUploadResponse(upload=message)

    async def _principal(self, context: Context) -> Principal:
        return await self._authenticator.principal(authorization_of(context))


async def _chunks(requests: AsyncIterator[uploads_pb2.AddUploadPartRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            message = "Send only `chunk` after the first message."
            raise InvalidRequestError("invalid_value", message, param="upload_id")
        yield request.chunk


def _upload(upload: UploadView) -> uploads_pb2.Upload:
    row = upload.row
    return uploads_pb2.Upload(
        id=row.id,
        bytes=row.bytes,
        created_at=row.created_at,
        filename=row.filename,
        purpose=row.purpose,
        status=upload.status.value,
        expires_at=row.expires_at,
        file=file_message(upload.file) if upload.file is not None else None,
    )


def _part(row: UploadPartRow) -> uploads_pb2.UploadPart:
    return uploads_pb2.UploadPart(
        id=row.id, created_at=row.created_at, upload_id=row.upload_id, bytes=row.bytes, sha256=row.sha256
    )
