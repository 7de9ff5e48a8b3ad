"""Owns the parts behind graders, built together: routes and servicer.

It must not know other domains; application.py puts this beside them.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio
from fastapi import APIRouter

from tunesmith_proto.graders.v1 import graders_pb2_grpc
from tunesmith_server.auth import Authenticator
from tunesmith_server.graders import endpoints
from tunesmith_server.graders.service import GradersService
from tunesmith_server.graders.servicer import GradersServicer
from tunesmith_server.inference_proxy import InferenceProxy


class GradersPart:
    """Everything about graders that the application runs."""

    def __init__(self, proxy: InferenceProxy) -> None:
        self._proxy = proxy
        self._service = GradersService()

    def routers(self) -> list[APIRouter]:
        """The REST routes."""
        return [endpoints.create_router(self._service, self._proxy)]

    def grpc_services(self, authenticator: Authenticator) -> dict[str, Callable[[grpc.aio.Server], None]]:
        """What adds the gRPC service to a server, by its full name."""
        servicer = GradersServicer(self._service, self._proxy, authenticator)
        return {
            "tunesmith.graders.v1.GradersService": lambda server: graders_pb2_grpc.add_GradersServiceServicer_to_server(
                servicer, server
            )
        }

    def stop(self) -> None:
        """Ends the threads."""
        self._service.close()
