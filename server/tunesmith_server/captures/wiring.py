"""Owns the parts behind captures, built together: routes, servicer, sweep, and what takes gateways' reports.

It must not know other domains' rules; application.py puts this beside them.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio
from fastapi import APIRouter

from tunesmith_proto.captures.v1 import captures_pb2_grpc
from tunesmith_server.auth import Authenticator
from tunesmith_server.captures import endpoints
from tunesmith_server.captures.datasets import DatasetsService
from tunesmith_server.captures.service import CapturesService
from tunesmith_server.captures.servicer import CapturesServicer
from tunesmith_server.captures.sweep import CapturesSweep
from tunesmith_server.core import Core
from tunesmith_server.files.service import FilesService


class CapturesPart:
    """Everything about captures that the application runs."""

    def __init__(self, core: Core, files: FilesService) -> None:
        self.service = CapturesService(core)
        self.sweep = CapturesSweep(core)
        self._datasets = DatasetsService(core, self.service, files)

    def routers(self) -> list[APIRouter]:
        """The REST routes."""
        return [endpoints.create_router(self.service), endpoints.create_datasets_router(self._datasets)]

    def grpc_services(self, authenticator: Authenticator) -> dict[str, Callable[[grpc.aio.Server], None]]:
        """What adds the gRPC service to a server, by its full name."""
        servicer = CapturesServicer(self.service, self._datasets, authenticator)
        return {
            "tunesmith.captures.v1.CapturesService": lambda server: (
                captures_pb2_grpc.add_CapturesServiceServicer_to_server(servicer, server)
            )
        }
