"""Owns the gRPC view of checkpoint permissions, the twin of permission_endpoints.py.

It must not know rules or SQL; permissions.py decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio

from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2 as pb
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2_grpc
from tunesmith_server.auth import Authenticator, authorization_of
from tunesmith_server.error_rendering import read_shape
from tunesmith_server.fine_tunes.permission_schemas import CreatePermissions, PermissionObject
from tunesmith_server.fine_tunes.permissions import PermissionsService

Context = grpc.aio.ServicerContext[Any, Any]


class CheckpointPermissionsServicer(fine_tunes_pb2_grpc.CheckpointPermissionsServiceServicer):
    """CheckpointPermissionsService for API keys with the scope admin."""

    def __init__(self, service: PermissionsService, authenticator: Authenticator) -> None:
        self._service = service
        self._authenticator = authenticator

    async def CreateCheckpointPermissions(  # noqa: N802
        self, request: pb.CreateCheckpointPermissionsRequest, context: Context
    ) -> pb.CreateCheckpointPermissionsResponse:
        """Lets projects prompt a checkpoint."""
        await self._authenticator.principal(authorization_of(context))
        asked = read_shape(CreatePermissions, {"project_ids": [*request.project_ids]})
        page = await self._service.create(request.fine_tuned_model_checkpoint, asked)
        return pb.CreateCheckpointPermissionsResponse(permissions=_messages(page.data))

    async def ListCheckpointPermissions(  # noqa: N802
        self, request: pb.ListCheckpointPermissionsRequest, context: Context
    ) -> pb.ListCheckpointPermissionsResponse:
        """Who may prompt a checkpoint."""
        await self._authenticator.principal(authorization_of(context))
        page = await self._service.list(
            request.fine_tuned_model_checkpoint,
            project_id=request.project_id or None,
            after=request.after or None,
            limit=request.limit or 10,
            order="ascending" if request.ascending else "descending",
        )
        return pb.ListCheckpointPermissionsResponse(permissions=_messages(page.data), has_more=page.has_more)

    async def DeleteCheckpointPermission(  # noqa: N802
        self, request: pb.DeleteCheckpointPermissionRequest, context: Context
    ) -> pb.DeleteCheckpointPermissionResponse:
        """Takes a permission back."""
        await self._authenticator.principal(authorization_of(context))
        await self._service.delete(request.fine_tuned_model_checkpoint, request.id)
        return pb.DeleteCheckpointPermissionResponse(id=request.id)


def _messages(permissions: Sequence[PermissionObject]) -> list[pb.CheckpointPermission]:
    return [pb.CheckpointPermission(**each.model_dump(exclude={"object"})) for each in permissions]
