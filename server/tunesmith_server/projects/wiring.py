"""Owns the parts behind administration, built together: projects, keys, usage, the audit log, and tasks beside them.

It must not know other domains; application.py puts this beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio
from fastapi import APIRouter

from tunesmith_proto.projects.v1 import admin_pb2_grpc, usage_pb2_grpc
from tunesmith_server.audit import endpoints as audit_endpoints
from tunesmith_server.audit.service import AuditLog
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.projects import endpoints, usage_endpoints
from tunesmith_server.projects.admin_servicer import AdminParts, AdminServicer
from tunesmith_server.projects.administration import Administration
from tunesmith_server.projects.service import ProjectsService
from tunesmith_server.projects.usage import UsageService
from tunesmith_server.projects.usage_servicer import UsageServicer
from tunesmith_server.repeat import repeat

_WRITE_SECONDS = 5.0


class AdministrationPart:
    """Everything about projects that the application runs."""

    def __init__(self, core: Core) -> None:
        self.keys = ProjectsService(core)
        self.usage = UsageService(core)
        self.audit = AuditLog(core)
        self._administration = Administration(core, self.keys.lookup)
        self._tasks: list[asyncio.Task[None]] = []

    def routers(self) -> list[APIRouter]:
        """The REST routes."""
        return [
            *endpoints.create_routers(self._administration, self.keys),
            usage_endpoints.create_router(self.usage),
            audit_endpoints.create_router(self.audit),
        ]

    def grpc_services(self, authenticator: Authenticator) -> dict[str, Callable[[grpc.aio.Server], None]]:
        """What adds each gRPC service to a server, by its full name."""
        admin = AdminServicer(AdminParts(self._administration, self.keys, self.audit, self.usage), authenticator)
        usage = UsageServicer(self.usage, authenticator)
        return {
            "tunesmith.projects.v1.AdminService": lambda server: admin_pb2_grpc.add_AdminServiceServicer_to_server(
                admin, server
            ),
            "tunesmith.projects.v1.UsageService": lambda server: usage_pb2_grpc.add_UsageServiceServicer_to_server(
                usage, server
            ),
        }

    async def start(self) -> None:
        """Makes the first key, then starts to write what calls leave behind."""
        await self.keys.ensure_first_key()
        self._tasks = [
            asyncio.create_task(repeat(self.audit.flush, _WRITE_SECONDS, self.audit.woken)),
            asyncio.create_task(repeat(self.keys.lookup.write_uses, _WRITE_SECONDS)),
        ]

    async def stop(self) -> None:
        """Writes what is left, as far as the database takes it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(self.audit.flush(), self.keys.lookup.write_uses(), return_exceptions=True)
