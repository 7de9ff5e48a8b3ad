"""Owns the REST routes of checkpoint permissions.

It must not know rules or SQL; permissions.py decides.
"""

from __future__ import annotations

from fastapi import APIRouter

from tunesmith_server.fine_tunes.permission_schemas import CreatePermissions, DeletedPermission, PermissionPage
from tunesmith_server.fine_tunes.permissions import PermissionsService
from tunesmith_server.http_auth import CurrentPrincipal


def create_router(service: PermissionsService) -> APIRouter:
    """Names of checkpoints may hold slashes, which clients send as %2F and servers decode: hence the catch-all path."""
    router = APIRouter(prefix="/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions", tags=["fine-tuning"])

    @router.get("")
    async def list_permissions(
        checkpoint: str,
        _principal: CurrentPrincipal,
        project_id: str | None = None,
        after: str | None = None,
        limit: int = 10,
        order: str = "descending",
    ) -> PermissionPage:
        return await service.list(checkpoint, project_id=project_id, after=after, limit=limit, order=order)

    @router.post("")
    async def create_permissions(
        checkpoint: str, body: CreatePermissions, _principal: CurrentPrincipal
    ) -> PermissionPage:
        return await service.create(checkpoint, body)

    @router.delete("/{permission_id}")
    async def delete_permission(checkpoint: str, permission_id: str, _principal: CurrentPrincipal) -> DeletedPermission:
        await service.delete(checkpoint, permission_id)
        return DeletedPermission(id=permission_id)

    return router
