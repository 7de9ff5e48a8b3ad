"""Owns the gRPC twin of the file routes.

It must not know SQL, storage or rules; the service does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from sqlalchemy import Row

from tunesmith_proto.files.v1 import files_pb2, files_pb2_grpc, uploads_pb2
from tunesmith_server.auth import Authenticator, Principal, authorization_of
from tunesmith_server.db.tables import FileRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.files.limits import ExpiresAfter
from tunesmith_server.files.service import MAX_PAGE, FilesService

Context = grpc.aio.ServicerContext[Any, Any]


class FilesServicer(files_pb2_grpc.FilesServiceServicer):
    """Implements tunesmith.files.v1.FilesService."""

    def __init__(self, service: FilesService, authenticator: Authenticator) -> None:
        self._service = service
        self._authenticator = authenticator

    async def CreateFile(  # noqa: N802
        self, requests: AsyncIterator[files_pb2.CreateFileRequest], context: Context
    ) -> files_pb2.CreateFileResponse:
        """Takes a file in."""
        principal = await self._principal(context)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "info":
            raise InvalidRequestError("missing_required_parameter", "Send `info` in the first message.", param="info")
        row = await self._service.create(
            principal,
            filename=first.info.filename,
            purpose=first.info.purpose,
            chunks=_chunks(requests),
            expires_after=expires_after(first.info),
        )
        return files_pb2.CreateFileResponse(file=file_message(row))

    async def GetFile(  # noqa: N802
        self, request: files_pb2.GetFileRequest, context: Context
    ) -> files_pb2.GetFileResponse:
        """Describes a file."""
        row = await self._service.get(await self._principal(context), request.id)
        return files_pb2.GetFileResponse(file=file_message(row))

    async def ListFiles(  # noqa: N802
        self, request: files_pb2.ListFilesRequest, context: Context
    ) -> files_pb2.ListFilesResponse:
        """Lists files."""
        page = await self._service.list(
            await self._principal(context),
            limit=request.limit or MAX_PAGE,
            after=request.after,
            order=request.order or "desc",
            purpose=request.purpose,
            sha256=request.sha256,
        )
        return files_pb2.ListFilesResponse(files=[file_message(row) for row in page.files], has_more=page.has_more)

    async def DownloadFile(  # noqa: N802
        self, request: files_pb2.DownloadFileRequest, context: Context
    ) -> AsyncIterator[files_pb2.DownloadFileResponse]:
        """Streams a file's content."""
        _, chunks = await self._service.open(await self._principal(context), request.id)
        async for chunk in chunks:
            yield files_pb2.DownloadFileResponse(chunk=chunk)

    async def DeleteFile(  # noqa: N802
        self, request: files_pb2.DeleteFileRequest, context: Context
    ) -> files_pb2.DeleteFileResponse:
        """Deletes a file."""
        await self._service.delete(await self._principal(context), request.id)
        return files_pb2.DeleteFileResponse(id=request.id)

    async def _principal(self, context: Context) -> Principal:
        return await self._authenticator.principal(authorization_of(context))


def expires_after(request: files_pb2.FileInfo | uploads_pb2.CreateUploadRequest) -> ExpiresAfter | None:
    """When a file shall expire, None when nothing was said."""
    if not request.HasField("expires_after"):
        return None
    return ExpiresAfter(request.expires_after.anchor, request.expires_after.seconds)


def file_message(row: FileRow | Row[Any]) -> files_pb2.File:
    """A file as gRPC callers see it."""
    return files_pb2.File(
        id=row.id,
        bytes=row.bytes,
        created_at=row.created_at,
        filename=row.filename,
        purpose=row.purpose,
        status=row.status,
        sha256=row.sha256,
        expires_at=row.expires_at,
    )


async def _chunks(requests: AsyncIterator[files_pb2.CreateFileRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidRequestError("invalid_value", "Send only `chunk` after the first message.", param="info")
        yield request.chunk
