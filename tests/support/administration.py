"""Owns an installation in this process for tests of access: every route and rpc wired, no task running."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio
import httpx
import pytest
from google.protobuf import descriptor_pool

from tunesmith_server.application import Application
from tunesmith_server.core import Core
from tunesmith_server.inference_proxy import InferenceProxy
from tunesmith_server.projects.administration import Administration
from tunesmith_server.projects.scopes import PROJECT
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService
from tunesmith_server.projects.wiring import AdministrationPart

_BETWEEN_PROCESSES = ("tunesmith.training.v1.TrainingService", "tunesmith.registry.v1.ServingService")


@dataclass(frozen=True, slots=True)
class Installation:
    """An application, the part of it that tests of access look into, and keys."""

    core: Core
    application: Application
    part: AdministrationPart

    async def key(self, *scopes: str, project_id: str = DEFAULT_PROJECT) -> str:
        """A new key with these scopes; without any, it may do everything in its project."""
        return (await self.part.keys.create_key(project_id, "test", scopes or (PROJECT,))).key

    async def http(self, *scopes: str, project_id: str = DEFAULT_PROJECT) -> httpx.AsyncClient:
        """A REST client with such a key."""
        return client(self.application, await self.key(*scopes, project_id=project_id))

    async def metadata(self, *scopes: str, project_id: str = DEFAULT_PROJECT) -> Sequence[tuple[str, str]]:
        """What to send with a gRPC call for such a key."""
        return (("authorization", f"Bearer {await self.key(*scopes, project_id=project_id)}"),)

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """A gRPC channel to the application."""
        port = await self.application.grpc.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as made:
            yield made
        await self.application.grpc.stop(0)

    def routes(self) -> set[str]:
        """Every public route, as `METHOD /path`."""
        paths = self.application.http.openapi()["paths"]
        return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}

    def rpcs(self) -> set[str]:
        """Every public gRPC method, as `/package.Service/Method`."""
        pool = descriptor_pool.Default()
        services = [name for name in self.application.grpc.services if name not in _BETWEEN_PROCESSES]
        return {f"/{name}/{method.name}" for name in services for method in pool.FindServiceByName(name).methods}


def client(application: Application, key: str) -> httpx.AsyncClient:
    """A REST client with the key."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(application.http), base_url="http://test", headers=headers)


async def install(core: Core) -> Installation:
    """An installation with the projects `default` and `other`."""
    application = Application(core, InferenceProxy("", reason_for_none="Inference is off."))
    await ProjectsService(core).ensure_first_key()
    part = application.administration
    await Administration(core, part.keys.lookup).create("Other", "other")
    return Installation(core, application, part)


@pytest.fixture
async def installation(core: Core) -> AsyncIterator[Installation]:
    """An installation on SQLite and a folder."""
    made = await install(core)
    yield made
    await made.application.stop()


@pytest.fixture
async def each_installation(each_core: Core) -> AsyncIterator[Installation]:
    """An installation of each kind in turn."""
    made = await install(each_core)
    yield made
    await made.application.stop()
