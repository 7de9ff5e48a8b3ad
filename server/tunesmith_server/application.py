"""Owns the wiring: settings in, every service, both transports and the tasks beside them out.

It must not know ports, signals or processes: serve.py runs what is wired here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from tunesmith_proto.files.v1 import files_pb2_grpc
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2_grpc
from tunesmith_proto.registry.v1 import models_pb2_grpc, serving_pb2_grpc
from tunesmith_proto.training.v1 import training_pb2_grpc
from tunesmith_server import inference_proxy
from tunesmith_server.auth import Authenticator, Signer, load_secret
from tunesmith_server.clock import system_clock
from tunesmith_server.config import Settings
from tunesmith_server.core import Core
from tunesmith_server.db import migrate
from tunesmith_server.db.session import Database
from tunesmith_server.executors.local import LocalExecutor
from tunesmith_server.files import endpoints as files_endpoints
from tunesmith_server.files.service import FilesService
from tunesmith_server.files.servicer import FilesServicer
from tunesmith_server.fine_tunes import endpoints as fine_tunes_endpoints
from tunesmith_server.fine_tunes.service import FineTunesService
from tunesmith_server.fine_tunes.servicer import FineTunesServicer
from tunesmith_server.grpc_app import GrpcServer, Register, create_grpc_server
from tunesmith_server.http_app import create_http_app
from tunesmith_server.projects.service import ProjectsService
from tunesmith_server.registry import endpoints as models_endpoints
from tunesmith_server.registry.base_model_cache import Progress
from tunesmith_server.registry.base_models import BaseModelImporter
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.registry.servicer import ModelsServicer
from tunesmith_server.registry.serving_servicer import ServingServicer
from tunesmith_server.scheduling.background import Scheduling
from tunesmith_server.storage import endpoints as storage_endpoints
from tunesmith_server.storage.filesystem import FilesystemStore
from tunesmith_server.storage.open import open_store
from tunesmith_server.training.service import TrainingService
from tunesmith_server.training.servicer import TrainingServicer

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_core(settings: Settings) -> AsyncIterator[Core]:
    """The parts that services are built from, with the database at the newest schema."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = settings.secret_key.get_secret_value().encode() if settings.secret_key else load_secret(settings.home)
    signer = Signer(secret)
    await asyncio.to_thread(migrate.upgrade, settings.resolved_database_url)
    database = Database(settings.resolved_database_url)
    try:
        yield Core(settings, database, open_store(settings, signer), signer, system_clock)
    finally:
        await database.close()


def service_token(core: Core) -> str:
    """What gateways of this installation present."""
    configured = core.settings.service_token
    return configured.get_secret_value() if configured else core.signer.service_token()


class Application:
    """Every part of the control plane, wired. `http` and `grpc` are not listening yet."""

    def __init__(self, core: Core, proxy: inference_proxy.InferenceProxy, progress: Progress = _log.info) -> None:
        self._projects = ProjectsService(core)
        self._files = FilesService(core)
        self._registry = RegistryService(core)
        self._proxy = proxy
        self._importer = BaseModelImporter(core, self._registry.changes, progress)
        self._scheduling = Scheduling(core, _executor(core.settings))
        self._fine_tunes = FineTunesService(core, self._scheduling.wake)
        self._training = TrainingService(core, self._registry, self._scheduling.wake)
        self._tasks: list[asyncio.Task[Any]] = []
        authenticator = Authenticator(self._projects, core.signer, service_token(core))
        self.http: FastAPI = create_http_app(core, authenticator, self._routers(core))
        self.grpc: GrpcServer = create_grpc_server(self._grpc_services(authenticator))

    async def start(self) -> None:
        """Makes what requests rely on, then starts the tasks beside them; imports and sweeps run on."""
        await self._projects.ensure_first_key()
        await self._importer.sync_catalogue()
        await self._scheduling.start()
        self._in_background("import of base models", self._importer.import_all())
        self._in_background("sweep of orphaned uploads", self._files.sweep_orphans())

    def stop_admission(self) -> None:
        """Ends the streams that would never end by themselves."""
        self._registry.changes.close()

    async def stop(self) -> None:
        """Ends the tasks; runs live on and are found again by the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._scheduling.stop()
        await self._proxy.close()

    def _in_background(self, name: str, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_log_failure)
        self._tasks.append(task)

    def _routers(self, core: Core) -> list[APIRouter]:
        routers = [
            files_endpoints.create_router(self._files),
            fine_tunes_endpoints.create_router(self._fine_tunes),
            models_endpoints.create_router(self._registry),
            inference_proxy.create_router(self._proxy),
        ]
        if isinstance(core.store, FilesystemStore):
            routers.append(storage_endpoints.create_router(core.store))
        return routers

    def _grpc_services(self, authenticator: Authenticator) -> dict[str, Register]:
        files = FilesServicer(self._files, authenticator)
        fine_tunes = FineTunesServicer(self._fine_tunes, authenticator)
        models = ModelsServicer(self._registry, authenticator)
        serving = ServingServicer(self._registry, authenticator)
        training = TrainingServicer(self._training, authenticator)
        return {
            "tunesmith.files.v1.FilesService": _bound(files_pb2_grpc.add_FilesServiceServicer_to_server, files),
            "tunesmith.fine_tunes.v1.FineTunesService": _bound(
                fine_tunes_pb2_grpc.add_FineTunesServiceServicer_to_server, fine_tunes
            ),
            "tunesmith.registry.v1.ModelsService": _bound(models_pb2_grpc.add_ModelsServiceServicer_to_server, models),
            "tunesmith.registry.v1.ServingService": _bound(
                serving_pb2_grpc.add_ServingServiceServicer_to_server, serving
            ),
            "tunesmith.training.v1.TrainingService": _bound(
                training_pb2_grpc.add_TrainingServiceServicer_to_server, training
            ),
        }


def _bound(add: Callable[[Any, Any], None], servicer: object) -> Register:
    return lambda server: add(servicer, server)


def _executor(settings: Settings) -> LocalExecutor:
    command = (str(settings.trainer_python), "-m", "tunesmith_trainer", "run")
    return LocalExecutor(settings.home / "runs", settings.cache_dir, command)


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("%s failed", task.get_name(), exc_info=task.exception())
