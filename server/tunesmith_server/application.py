"""Owns the wiring: settings in, every service, both transports and the tasks beside them out.

It must not know ports, signals or processes: serve.py runs what is wired here.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from tunesmith_proto.files.v1 import files_pb2_grpc, uploads_pb2_grpc
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2_grpc
from tunesmith_proto.registry.v1 import models_pb2_grpc, serving_pb2_grpc
from tunesmith_proto.training.v1 import training_pb2_grpc
from tunesmith_server import inference_proxy
from tunesmith_server.auth import Authenticator, Signer, load_secret
from tunesmith_server.captures.sweep import SWEEP_SECONDS as CAPTURES_SWEEP_SECONDS
from tunesmith_server.captures.wiring import CapturesPart
from tunesmith_server.clock import system_clock
from tunesmith_server.config import Settings
from tunesmith_server.core import Core
from tunesmith_server.db import migrate
from tunesmith_server.db.session import Database
from tunesmith_server.deployments.wiring import DeploymentsPart
from tunesmith_server.executors.base import Executor
from tunesmith_server.executors.docker import DockerExecutor, DockerSettings
from tunesmith_server.executors.local import LocalExecutor, announce
from tunesmith_server.executors.slurm import SlurmExecutor, SlurmSettings
from tunesmith_server.files import endpoints as files_endpoints
from tunesmith_server.files import upload_endpoints
from tunesmith_server.files.service import FilesService
from tunesmith_server.files.servicer import FilesServicer
from tunesmith_server.files.sweep import SWEEP_SECONDS, FilesSweep
from tunesmith_server.files.upload_service import UploadsService
from tunesmith_server.files.upload_servicer import UploadsServicer
from tunesmith_server.fine_tunes import endpoints as fine_tunes_endpoints
from tunesmith_server.fine_tunes import estimate_endpoints, legacy_endpoints, permission_endpoints
from tunesmith_server.fine_tunes.estimate_servicer import EstimatesServicer
from tunesmith_server.fine_tunes.estimate_sweep import SWEEP_SECONDS as ESTIMATE_SWEEP_SECONDS
from tunesmith_server.fine_tunes.estimate_sweep import EstimateSweep
from tunesmith_server.fine_tunes.estimates import EstimatesService
from tunesmith_server.fine_tunes.history import HistoryService
from tunesmith_server.fine_tunes.legacy import LegacyService
from tunesmith_server.fine_tunes.logs import RunLogs
from tunesmith_server.fine_tunes.model_limits import ModelLimitsService
from tunesmith_server.fine_tunes.permission_servicer import CheckpointPermissionsServicer
from tunesmith_server.fine_tunes.permissions import PermissionsService
from tunesmith_server.fine_tunes.report_endpoints import create_report_router
from tunesmith_server.fine_tunes.reports import ReportsService
from tunesmith_server.fine_tunes.service import FineTunesService
from tunesmith_server.fine_tunes.servicer import FineTunesServicer
from tunesmith_server.graders.wiring import GradersPart
from tunesmith_server.grpc_app import GrpcServer, Register, create_grpc_server
from tunesmith_server.http_app import create_http_app
from tunesmith_server.projects.wiring import AdministrationPart
from tunesmith_server.registry import endpoints as models_endpoints
from tunesmith_server.registry.base_model_cache import Progress
from tunesmith_server.registry.base_models import BaseModelImporter
from tunesmith_server.registry.downloads import DownloadsService
from tunesmith_server.registry.imports import ImportsService
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.registry.servicer import ModelsServicer
from tunesmith_server.registry.serving_servicer import ServingServicer
from tunesmith_server.registry.sweep import RevisionsSweep
from tunesmith_server.repeat import repeat
from tunesmith_server.scheduling.background import Scheduling
from tunesmith_server.scheduling.outlook import Outlook
from tunesmith_server.storage import endpoints as storage_endpoints
from tunesmith_server.storage.filesystem import FilesystemStore
from tunesmith_server.storage.open import open_store
from tunesmith_server.trackers.relay import TrackerRelay
from tunesmith_server.training.retention import CheckpointRetention
from tunesmith_server.training.service import TrainingService
from tunesmith_server.training.servicer import TrainingServicer
from tunesmith_server.training.sweep import RunsSweep
from tunesmith_server.webhooks.wiring import WebhooksPart

_SWEEP_SECONDS = 900.0
_RELAY_SECONDS = 1.0
_TRAINER = ("-m", "tunesmith_trainer", "run")

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
        self.administration = AdministrationPart(core)
        self._files = FilesService(core)
        self._uploads = UploadsService(core)
        self._captures = CapturesPart(core, self._files)
        self._files_sweep = FilesSweep(core)
        self._registry = RegistryService(core)
        self._sweeps = (CheckpointRetention(core), RunsSweep(core), RevisionsSweep(core))
        self._proxy = proxy
        self._importer = BaseModelImporter(core, self._registry.changes, progress)
        executor = _executor(core.settings, core.signer)
        self._scheduling = Scheduling(core, executor)
        outlook = Outlook(core, executor)
        self._fine_tunes = FineTunesService(core, self._scheduling.wake, outlook)
        self._estimates = EstimatesService(core, outlook, self._scheduling.wake)
        self._estimate_sweep = EstimateSweep(core)
        self._imports = ImportsService(core, self._scheduling.wake)
        self._permissions = PermissionsService(core, self._registry.changes.announce)
        self._history = HistoryService(core)
        self._legacy = LegacyService(core, self._fine_tunes, self._history)
        self._logs = RunLogs(core, executor)
        self._reports = ReportsService(core)
        self._model_limits = ModelLimitsService(core)
        self._training = TrainingService(core, self._registry, self._scheduling.wake)
        self._webhooks = WebhooksPart(core)
        self._deployments = DeploymentsPart(core, self._registry)
        self._trackers = TrackerRelay(core, self._scheduling.leads)
        self._graders = GradersPart(proxy)
        self._tasks: list[asyncio.Task[Any]] = []
        authenticator = Authenticator(self.administration.keys, core.signer, service_token(core))
        self.http: FastAPI = create_http_app(
            core, authenticator, self._routers(core), record=self.administration.audit.record
        )
        self.grpc: GrpcServer = create_grpc_server(self._grpc_services(authenticator), self.administration.audit.record)

    async def start(self) -> None:
        """Makes what requests rely on, then starts the tasks beside them; imports and sweeps run on."""
        await self.administration.start()
        await self._importer.sync_catalogue()
        await self._scheduling.start()
        self._webhooks.start()
        self._in_background("import of base models", self._importer.import_all())
        self._in_background("sweep of runs and revisions", repeat(self._sweep, _SWEEP_SECONDS))
        self._in_background("relay to trackers", repeat(self._trackers.run_once, _RELAY_SECONDS))
        self._in_background("sweep of estimates", repeat(self._estimate_sweep.run_once, ESTIMATE_SWEEP_SECONDS))
        self._in_background("sweep of captures", repeat(self._captures.sweep.run_once, CAPTURES_SWEEP_SECONDS))
        self._in_background("sweep of files", repeat(self._files_sweep.run_once, SWEEP_SECONDS))

    def stop_admission(self) -> None:
        """Ends the streams that would never end by themselves."""
        self._registry.changes.close()
        self._history.feed.close()

    async def stop(self) -> None:
        """Ends the tasks; runs live on and are found again by the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._scheduling.stop()
        await self._webhooks.stop()
        await self._trackers.stop()
        self._graders.stop()
        await self._proxy.close()
        await self.administration.stop()

    async def _sweep(self) -> None:
        if self._scheduling.leads():
            for sweep in self._sweeps:
                await sweep.run_once()

    def _in_background(self, name: str, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_log_failure)
        self._tasks.append(task)

    def _routers(self, core: Core) -> list[APIRouter]:
        routers = [
            files_endpoints.create_router(self._files),
            upload_endpoints.create_router(self._uploads),
            fine_tunes_endpoints.create_router(self._fine_tunes),
            fine_tunes_endpoints.create_history_router(self._history, self._logs),
            create_report_router(self._reports),
            fine_tunes_endpoints.create_limits_router(self._model_limits),
            legacy_endpoints.create_router(self._legacy),
            estimate_endpoints.create_router(self._estimates),
            permission_endpoints.create_router(self._permissions),
            models_endpoints.create_router(self._registry, self._imports, DownloadsService(core)),
            inference_proxy.create_router(self._proxy),
            *self._webhooks.routers(),
            *self._deployments.routers(),
            *self._captures.routers(),
            *self._graders.routers(),
            *self.administration.routers(),
        ]
        if isinstance(core.store, FilesystemStore):
            routers.append(storage_endpoints.create_router(core.store))
        return routers

    def _grpc_services(self, authenticator: Authenticator) -> dict[str, Register]:
        files = FilesServicer(self._files, authenticator)
        uploads = UploadsServicer(self._uploads, authenticator)
        fine_tunes = FineTunesServicer(self._fine_tunes, self._history, self._logs, self._model_limits, authenticator)
        estimates = EstimatesServicer(self._estimates, authenticator)
        permissions = CheckpointPermissionsServicer(self._permissions, authenticator)
        models = ModelsServicer(self._registry, self._imports, authenticator)
        serving = ServingServicer(self._registry, authenticator, self.administration.usage, self._captures.service)
        training = TrainingServicer(self._training, authenticator)
        return self.administration.grpc_services(authenticator) | {
            "tunesmith.files.v1.FilesService": _bound(files_pb2_grpc.add_FilesServiceServicer_to_server, files),
            "tunesmith.files.v1.UploadsService": _bound(uploads_pb2_grpc.add_UploadsServiceServicer_to_server, uploads),
            "tunesmith.fine_tunes.v1.FineTunesService": _bound(
                fine_tunes_pb2_grpc.add_FineTunesServiceServicer_to_server, fine_tunes
            ),
            "tunesmith.fine_tunes.v1.EstimatesService": _bound(
                fine_tunes_pb2_grpc.add_EstimatesServiceServicer_to_server, estimates
            ),
            "tunesmith.fine_tunes.v1.CheckpointPermissionsService": _bound(
                fine_tunes_pb2_grpc.add_CheckpointPermissionsServiceServicer_to_server, permissions
            ),
            "tunesmith.registry.v1.ModelsService": _bound(models_pb2_grpc.add_ModelsServiceServicer_to_server, models),
            "tunesmith.registry.v1.ServingService": _bound(
                serving_pb2_grpc.add_ServingServiceServicer_to_server, serving
            ),
            "tunesmith.training.v1.TrainingService": _bound(
                training_pb2_grpc.add_TrainingServiceServicer_to_server, training
            ),
            **self._webhooks.grpc_services(authenticator),
            **self._deployments.grpc_services(authenticator),
            **self._captures.grpc_services(authenticator),
            **self._graders.grpc_services(authenticator),
        }


def _bound(add: Callable[[Any, Any], None], servicer: object) -> Register:
    return lambda server: add(servicer, server)


def _executor(settings: Settings, signer: Signer) -> Executor:
    slots = settings.max_concurrent_runs
    if settings.executor == "docker":
        return DockerExecutor(
            ("python3", *_TRAINER),
            DockerSettings(
                installation=signer.sign("installation", "docker")[:16],
                image=settings.docker_image,
                socket=settings.docker_socket,
                network=settings.docker_network,
                cache_volume=settings.docker_cache_volume,
                memory_bytes=settings.docker_memory_bytes,
                process_limit=settings.docker_process_limit,
                slots=slots,
            ),
        )
    if settings.executor == "kubernetes":
        return _kubernetes_executor(settings, signer)
    command = (str(settings.trainer_python), *_TRAINER)
    folder = settings.home / "runs"
    if settings.executor == "slurm":
        slurm = SlurmSettings(slots, settings.slurm_gres, shlex.split(settings.slurm_options))
        return SlurmExecutor(settings.slurm_folder or folder, settings.cache_dir, command, slurm)
    announce(folder, settings.resolved_grpc_address)
    return LocalExecutor(folder, settings.cache_dir, command, slots)


def _kubernetes_executor(settings: Settings, signer: Signer) -> Executor:
    # Here, since its client is an extra of its own and takes half a second to load.
    from tunesmith_server.executors.kubernetes import KubernetesExecutor, KubernetesSettings
    from tunesmith_server.executors.kubernetes_objects import PodSettings

    place = KubernetesSettings(
        settings.kubernetes_namespace, settings.kubernetes_kubeconfig, settings.max_concurrent_runs
    )
    pods = PodSettings(
        installation=signer.sign("installation", "kubernetes")[:16],
        image=settings.kubernetes_image,
        image_pull_secrets=settings.kubernetes_image_pull_secrets,
        service_account=settings.kubernetes_service_account,
        gpu_resource=settings.kubernetes_gpu_resource,
        gpu=settings.kubernetes_gpu,
        cpu=settings.kubernetes_cpu,
        memory=settings.kubernetes_memory,
        ephemeral_storage=settings.kubernetes_ephemeral_storage,
        node_selector=settings.kubernetes_node_selector,
        tolerations=settings.kubernetes_tolerations,
        priority_class=settings.kubernetes_priority_class,
        queue=settings.kubernetes_queue,
        cache_claim=settings.kubernetes_cache_claim,
    )
    return KubernetesExecutor(("python3", *_TRAINER), place, pods)


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("%s failed", task.get_name(), exc_info=task.exception())
