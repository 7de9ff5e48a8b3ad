"""Owns the REST routes of deployments.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from tunesmith_server.deployments.schemas import (
    CreateDeployment,
    DeletedDeployment,
    DeploymentList,
    DeploymentObject,
    RollBack,
    UpdateDeployment,
    VersionPage,
)
from tunesmith_server.deployments.service import DeploymentsService
from tunesmith_server.http_auth import CurrentPrincipal

_After = Annotated[int | None, Query(ge=1, le=2**53)]


def create_router(service: DeploymentsService) -> APIRouter:
    """/v1/deployments and what lies below."""
    router = APIRouter(prefix="/v1/deployments", tags=["deployments"])

    @router.post("")
    async def create_deployment(body: CreateDeployment, principal: CurrentPrincipal) -> DeploymentObject:
        return await service.create(principal, body)

    @router.get("")
    async def list_deployments(principal: CurrentPrincipal) -> DeploymentList:
        return await service.list(principal)

    @router.get("/{name}")
    async def get_deployment(name: str, principal: CurrentPrincipal) -> DeploymentObject:
        return await service.get(principal, name)

    @router.post("/{name}")
    async def update_deployment(name: str, body: UpdateDeployment, principal: CurrentPrincipal) -> DeploymentObject:
        return await service.update(principal, name, body)

    @router.delete("/{name}")
    async def delete_deployment(name: str, principal: CurrentPrincipal) -> DeletedDeployment:
        await service.delete(principal, name)
        return DeletedDeployment(name=name)

    @router.post("/{name}/rollback")
    async def roll_back_deployment(
        name: str, principal: CurrentPrincipal, body: RollBack | None = None
    ) -> DeploymentObject:
        return await service.roll_back(principal, name, body.version if body else None)

    @router.get("/{name}/versions")
    async def list_versions(
        name: str, principal: CurrentPrincipal, after: _After = None, limit: int = 20
    ) -> VersionPage:
        return await service.list_versions(principal, name, after=after, limit=limit)

    return router
