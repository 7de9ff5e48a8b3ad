"""Owns the routes behind the signed URLs of the folder store: what S3 does itself in a cluster.

It must not know what objects mean or who was given a URL.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from tunesmith_server.errors import NotFoundError
from tunesmith_server.storage.filesystem import FilesystemStore
from tunesmith_server.storage.signed_urls import OBJECTS_PATH, Upload

_Sha256 = Annotated[str, Query(pattern="^[0-9a-f]{64}$")]


def create_router(store: FilesystemStore) -> APIRouter:
    """Routes that read (with ranges) and write objects for whoever holds a signed URL."""
    router = APIRouter(prefix=OBJECTS_PATH, include_in_schema=False)

    @router.get("/{key:path}")
    async def read_object(key: str, expires: int, signature: str) -> Response:
        store.urls.check("GET", key, expires, signature)
        path = await store.find(key)
        if path is None:
            raise NotFoundError("object_not_found", "There is no object under this URL (any more).")
        return FileResponse(path, media_type="application/octet-stream")

    @router.put("/{key:path}")
    async def write_object(
        key: str,
        expires: int,
        signature: str,
        size: Annotated[int, Query(ge=0)],
        sha256: _Sha256,
        request: Request,
    ) -> Response:
        upload = Upload(size, sha256)
        store.urls.check("PUT", key, expires, signature, upload)
        await store.put_stream(key, request.stream(), upload)
        return Response(status_code=200)

    return router
