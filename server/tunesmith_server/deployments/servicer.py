"""Owns the gRPC twin of the deployment routes.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc.aio

from tunesmith_proto.deployments.v1 import deployments_pb2 as pb
from tunesmith_proto.deployments.v1 import deployments_pb2_grpc
from tunesmith_server.auth import Authenticator, Principal, authorization_of
from tunesmith_server.deployments.schemas import CreateDeployment, DeploymentObject, RollBack, UpdateDeployment
from tunesmith_server.deployments.service import DeploymentsService
from tunesmith_server.error_rendering import read_shape

Context = grpc.aio.ServicerContext[Any, Any]


class DeploymentsServicer(deployments_pb2_grpc.DeploymentsServiceServicer):
    """Implements tunesmith.deployments.v1.DeploymentsService."""

    def __init__(self, service: DeploymentsService, authenticator: Authenticator) -> None:
        self._service = service
        self._authenticator = authenticator

    async def CreateDeployment(  # noqa: N802
        self, request: pb.CreateDeploymentRequest, context: Context
    ) -> pb.CreateDeploymentResponse:
        """Makes a deployment."""
        principal = await self._principal(context)
        sent = {"name": request.name, "targets": _targets(request.targets), "pinned": request.pinned}
        made = await self._service.create(principal, read_shape(CreateDeployment, sent))
        return pb.CreateDeploymentResponse(deployment=_message(made))

    async def ListDeployments(  # noqa: N802
        self, request: pb.ListDeploymentsRequest, context: Context
    ) -> pb.ListDeploymentsResponse:
        """The project's deployments."""
        found = await self._service.list(await self._principal(context))
        return pb.ListDeploymentsResponse(deployments=[_message(each) for each in found.data])

    async def GetDeployment(  # noqa: N802
        self, request: pb.GetDeploymentRequest, context: Context
    ) -> pb.GetDeploymentResponse:
        """One deployment."""
        found = await self._service.get(await self._principal(context), request.name)
        return pb.GetDeploymentResponse(deployment=_message(found))

    async def UpdateDeployment(  # noqa: N802
        self, request: pb.UpdateDeploymentRequest, context: Context
    ) -> pb.UpdateDeploymentResponse:
        """Changes a deployment."""
        principal = await self._principal(context)
        sent: dict[str, Any] = {"targets": _targets(request.targets)} if request.targets else {}
        if request.HasField("pinned"):
            sent["pinned"] = request.pinned
        changed = await self._service.update(principal, request.name, read_shape(UpdateDeployment, sent))
        return pb.UpdateDeploymentResponse(deployment=_message(changed))

    async def RollBackDeployment(  # noqa: N802
        self, request: pb.RollBackDeploymentRequest, context: Context
    ) -> pb.RollBackDeploymentResponse:
        """Gives a deployment the targets of an earlier version."""
        principal = await self._principal(context)
        body = read_shape(RollBack, {"version": request.version or None})
        changed = await self._service.roll_back(principal, request.name, body.version)
        return pb.RollBackDeploymentResponse(deployment=_message(changed))

    async def ListDeploymentVersions(  # noqa: N802
        self, request: pb.ListDeploymentVersionsRequest, context: Context
    ) -> pb.ListDeploymentVersionsResponse:
        """What a deployment stood for, newest first."""
        principal = await self._principal(context)
        page = await self._service.list_versions(
            principal, request.name, after=request.after or None, limit=request.limit or 20
        )
        versions = [
            pb.Version(
                version=each.version,
                created_at=each.created_at,
                targets=[pb.Target(**target.model_dump()) for target in each.targets],
            )
            for each in page.data
        ]
        return pb.ListDeploymentVersionsResponse(versions=versions, has_more=page.has_more)

    async def DeleteDeployment(  # noqa: N802
        self, request: pb.DeleteDeploymentRequest, context: Context
    ) -> pb.DeleteDeploymentResponse:
        """Ends a deployment."""
        await self._service.delete(await self._principal(context), request.name)
        return pb.DeleteDeploymentResponse(name=request.name)

    async def _principal(self, context: Context) -> Principal:
        return await self._authenticator.principal(authorization_of(context))


def _targets(targets: Iterable[pb.Target]) -> list[dict[str, Any]]:
    return [{"model": target.model, "weight": target.weight} for target in targets]


def _message(shown: DeploymentObject) -> pb.Deployment:
    return pb.Deployment(**shown.model_dump(exclude={"object"}))
