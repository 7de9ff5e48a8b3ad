"""Owns the REST routes of models.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from tunesmith_server.error_rendering import http_response
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.long_lists import encoded
from tunesmith_server.registry import replicas, schemas
from tunesmith_server.registry.downloads import Download, DownloadsService
from tunesmith_server.registry.imports import ImportsService
from tunesmith_server.registry.schemas import CreateModel, DeletedModel, ModelList, ModelObject, ServedModel
from tunesmith_server.registry.service import Model, RegistryService, imported_model

_TAR = {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}
_ARCHIVE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A tar.", "content": _TAR},
    206: {"description": "The tar from the byte that `Range: bytes=N-` names.", "content": _TAR},
    416: {"description": "The tar has fewer bytes; `Content-Range` says how many."},
}
_RANGE = re.compile(r"bytes=([0-9]{1,18})-")


def create_router(
    service: RegistryService, imports: ImportsService, downloads: DownloadsService, standstill_seconds: float = 60
) -> APIRouter:
    """/v1/models and /v1/model_archives. A merge ends whose client takes nothing for `standstill_seconds`.

    Ids may hold slashes, which clients send as %2F and servers decode: hence the catch-all paths.
    """
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", response_model=ModelList)
    async def list_models(principal: CurrentPrincipal) -> Response:
        models = await service.list_models(principal)
        return await encoded(lambda: ModelList(data=[_object(model) for model in models]))

    @router.post("/v1/models")
    async def create_model(
        body: CreateModel, principal: CurrentPrincipal, idempotency_key: Annotated[str | None, Header()] = None
    ) -> ServedModel:
        made = imported_model(await imports.create(principal, body, idempotency_key))
        return _served(made, await service.replicas.of(made.revision))

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str, principal: CurrentPrincipal) -> ServedModel:
        found = await service.get_model(principal, model)
        return _served(found, await service.replicas.of(found.revision))

    @router.delete("/v1/models/{model:path}")
    async def delete_model(model: str, principal: CurrentPrincipal) -> DeletedModel:
        await service.delete_model(principal, model)
        return DeletedModel(id=model)

    # Not below the model's own path: a name may end in anything.
    @router.get("/v1/model_archives/{model:path}", response_class=StreamingResponse, responses=_ARCHIVE)
    @router.head("/v1/model_archives/{model:path}", include_in_schema=False)
    async def download_model(
        request: Request, model: str, principal: CurrentPrincipal, merged: bool = False
    ) -> Response:
        archive = await downloads.open(principal, model, merged=merged)
        return _archive_answer(request, model, archive, standstill_seconds)

    return router


def _archive_answer(request: Request, model: str, archive: Download, standstill_seconds: float) -> Response:
    """The whole archive, its head alone, or the rest of it from a byte; other forms of Range give the whole."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model)
    headers = {
        "accept-ranges": "bytes",
        "content-disposition": f'attachment; filename="{name}.tar"',
        "content-length": str(archive.size),
        "etag": archive.etag,
    }
    if request.method == "HEAD":
        return Response(headers=headers, media_type=_ArchiveResponse.media_type)
    is_same = request.headers.get("if-range", archive.etag) == archive.etag
    asked = _RANGE.fullmatch(request.headers.get("range", "")) if is_same else None
    if asked is None:
        return _ArchiveResponse(archive, headers, standstill_seconds)
    start = int(asked[1])
    if start >= archive.size:
        message = f"The archive has {archive.size} bytes. Ask for some of them, or without Range for all."
        refusal = http_response(InvalidRequestError("range_not_satisfiable", message, param="range"))
        refusal.status_code = 416
        refusal.headers["content-range"] = f"bytes */{archive.size}"
        return refusal
    headers["content-length"] = str(archive.size - start)
    headers["content-range"] = f"bytes {start}-{archive.size - 1}/{archive.size}"
    return _ArchiveResponse(archive, headers, standstill_seconds, start)


class _ArchiveResponse(StreamingResponse):
    """Opens the archive when it is its turn to answer, and closes it however the answer ends."""

    media_type = "application/x-tar"

    def __init__(
        self, archive: Download, headers: Mapping[str, str], standstill_seconds: float, start: int | None = None
    ) -> None:
        super().__init__((), status_code=200 if start is None else 206, headers=headers)
        self._archive, self._start = archive, start or 0
        self._patience = standstill_seconds if archive.turn is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def attended(message: Message) -> None:
            try:
                async with asyncio.timeout(self._patience):
                    await send(message)
            except TimeoutError as error:  # the project's turn would be held for ever
                raise ClientDisconnect from error

        async with self._archive.opened(self._start) as self.body_iterator:
            await super().__call__(scope, receive, attended)


def _object(model: Model) -> ModelObject:
    return ModelObject(id=model.id, created=model.created, owned_by=model.owned_by)


def _served(model: Model, serving: replicas.Serving) -> ServedModel:
    return ServedModel(
        **_object(model).model_dump(),
        status=model.status,
        error=model.error,
        serving=schemas.Serving.model_validate(serving),
    )
