"""Owns the REST routes of models.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import Response, StreamingResponse

from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.long_lists import encoded
from tunesmith_server.registry import replicas, schemas
from tunesmith_server.registry.downloads import DownloadsService
from tunesmith_server.registry.imports import ImportsService
from tunesmith_server.registry.schemas import CreateModel, DeletedModel, ModelList, ModelObject, ServedModel
from tunesmith_server.registry.service import Model, RegistryService, imported_model

_ARCHIVE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A tar.", "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}}
}


def create_router(service: RegistryService, imports: ImportsService, downloads: DownloadsService) -> APIRouter:
    """/v1/models and /v1/model_archives.

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
    async def download_model(model: str, principal: CurrentPrincipal, merged: bool = False) -> StreamingResponse:
        archive = await downloads.open(principal, model, merged=merged)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", model)
        headers = {"content-length": str(archive.size), "content-disposition": f'attachment; filename="{name}.tar"'}
        return StreamingResponse(archive.chunks, headers=headers, media_type="application/x-tar")

    return router


def _object(model: Model) -> ModelObject:
    return ModelObject(id=model.id, created=model.created, owned_by=model.owned_by)


def _served(model: Model, serving: replicas.Serving) -> ServedModel:
    return ServedModel(
        **_object(model).model_dump(),
        status=model.status,
        error=model.error,
        serving=schemas.Serving.model_validate(serving),
    )
