"""Owns the REST routes of models.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

from fastapi import APIRouter

from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.registry.schemas import DeletedModel, ModelList, ModelObject
from tunesmith_server.registry.service import Model, RegistryService


def create_router(service: RegistryService) -> APIRouter:
    """/v1/models. Ids may hold slashes, which clients send as %2F and servers decode: hence the catch-all paths."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models")
    async def list_models(principal: CurrentPrincipal) -> ModelList:
        return ModelList(data=[_object(model) for model in await service.list_models(principal)])

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str, principal: CurrentPrincipal) -> ModelObject:
        return _object(await service.get_model(principal, model))

    @router.delete("/v1/models/{model:path}")
    async def delete_model(model: str, principal: CurrentPrincipal) -> DeletedModel:
        await service.delete_model(principal, model)
        return DeletedModel(id=model)

    return router


def _object(model: Model) -> ModelObject:
    return ModelObject(id=model.id, created=model.created, owned_by=model.owned_by)
