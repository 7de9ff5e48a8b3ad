"""Owns the parts behind deployments, built together: routes and servicer.

It must not know other domains' rules; application.py puts this beside them.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio
from fastapi import APIRouter

from tunesmith_proto.deployments.v1 import deployments_pb2_grpc
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.deployments import endpoints
from tunesmith_server.deployments.service import DeploymentsService
from tunesmith_server.deployments.servicer import DeploymentsServicer
from tunesmith_server.registry.service import RegistryService


class DeploymentsPart:
    """Everything about deployments that the application runs."""

    def __init__(self, core: Core, models: RegistryService) -> None:
        self._service = DeploymentsService(core, models)

    def routers(self) -> list[APIRouter]:
        """The REST routes."""
        return [endpoints.create_router(self._service)]

    def grpc_services(self, authenticator: Authenticator) -> dict[str, Callable[[grpc.aio.Server], None]]:
        """What adds the gRPC service to a server, by its full name."""
        servicer = DeploymentsServicer(self._service, authenticator)
        return {
            "tunesmith.deployments.v1.DeploymentsService": lambda server: (
                deployments_pb2_grpc.add_DeploymentsServiceServicer_to_server(servicer, server)
            )
        }
