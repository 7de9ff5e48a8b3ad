"""Owns one control-plane process: its lock, ports and signals, and the order in which its parts start and stop.

It must not know services; application.py wires them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import uvicorn
from fastapi import FastAPI

from tunesmith_server import failpoints
from tunesmith_server.application import Application, open_core, service_token
from tunesmith_server.auth import Signer
from tunesmith_server.config import Settings
from tunesmith_server.db import migrate
from tunesmith_server.embedded import GatewayProcess, InferenceMode, plan_inference
from tunesmith_server.errors import UnavailableError
from tunesmith_server.files.intake import FILES_FOLDER
from tunesmith_server.inference_proxy import InferenceProxy
from tunesmith_server.registry.sweep import FOLDER as REVISIONS_FOLDER
from tunesmith_server.storage.base import ObjectStore
from tunesmith_server.storage.open import open_store

_DRAIN_SECONDS = 10
_BACKLOG = 2048
_USERS_FOLDERS = (FILES_FOLDER, REVISIONS_FOLDER)

_log = logging.getLogger(__name__)


class StartError(Exception):
    """The server cannot start; the message tells the operator what to do."""


async def serve(
    settings: Settings, *, inference: InferenceMode, on_ready: Callable[[], None], progress: Callable[[str], None]
) -> None:
    """Runs the control plane, and the gateway beside it when there is to be one, until SIGTERM or SIGINT.

    Raises StartError when another server holds the home or a port, or the database is not the one of the objects.
    """
    failpoints.arm(settings.failpoint)
    # A home that was there before may be open to every user of the machine; what is made in it is not.
    os.umask(0o077)
    with _exclusive_home(settings), listening_socket(settings) as rest:
        _empty_spool(settings.spool)
        await _refuse_lost_database(settings)
        async with open_core(settings) as core:
            plan = plan_inference(settings, service_token(core), inference)
            if plan.reason_for_none:
                progress(plan.reason_for_none)
            proxy = InferenceProxy(plan.url, reason_for_none=plan.reason_for_none)
            application = Application(core, proxy, progress)
            gateway = GatewayProcess(plan.environment) if plan.environment is not None else None
            await _Process(settings, application, gateway, rest).run(on_ready)


class _Process:
    """The running parts, between the first start and the last stop."""

    def __init__(
        self,
        settings: Settings,
        application: Application,
        gateway: GatewayProcess | None,
        rest: socket.socket,
    ) -> None:
        self._settings = settings
        self._application = application
        self._gateway = gateway
        self._http = _HttpServer(application.http)
        self._rest = rest
        self._stopping = asyncio.Event()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Starts everything, waits for a signal, stops everything in the reverse order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        await self._start_grpc()
        try:
            await self._application.start()
            http = asyncio.create_task(self._http.serve(sockets=[self._rest]))
            gateway = asyncio.create_task(self._gateway.run()) if self._gateway else None
            await self._http.wait_until_started(http)
            on_ready()
            await self._until_stopped(http)
            await self._drain(http, gateway)
        finally:
            await self._application.stop()

    async def _start_grpc(self) -> None:
        address = f"{self._settings.host}:{self._settings.grpc_port}"
        try:
            await self._application.grpc.start(address)
        except OSError as error:
            raise StartError(f"gRPC cannot listen on {address}: the port is in use. Choose another --grpc-port.") from (
                error
            )

    async def _until_stopped(self, http: asyncio.Task[None]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({http, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()

    async def _drain(self, http: asyncio.Task[None], gateway: asyncio.Task[None] | None) -> None:
        _log.info("stopping: requests under way are finished")
        self._application.stop_admission()
        self._http.should_exit = True
        if gateway is not None:
            await asyncio.wait({http})
            # Before gRPC, over which its last words come: what it has counted, and that it holds nothing any more.
            gateway.cancel()
            await asyncio.gather(gateway, return_exceptions=True)
        await asyncio.gather(self._application.grpc.stop(_DRAIN_SECONDS), http)

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            # Asked twice: the gateway notices by itself that its parent is gone.
            os._exit(1)
        self._stopping.set()


class _HttpServer(uvicorn.Server):
    """uvicorn without its own ideas about signals and logs."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the process, which has more to stop than this server."""
        yield

    async def wait_until_started(self, serving: asyncio.Task[None]) -> None:
        """Returns once requests are answered; raises what kept the server from it."""
        while not self.started:
            if serving.done():
                await serving
                raise StartError("The HTTP server ended while it started.")
            await asyncio.sleep(0.01)


@contextmanager
def _exclusive_home(settings: Settings) -> Iterator[None]:
    """Two servers on one home would share an SQLite file and run folders; PostgreSQL may have many servers."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (settings.home / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _read_holder(file)
            message = f"Another tunesmithd{holder} already serves {settings.home}. Stop it, or choose another --home."
            raise StartError(message) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


async def _refuse_lost_database(settings: Settings) -> None:
    """Raises StartError where users' objects lie beside a new database: it knows none, so sweeps would remove them.

    Base models alone are no sign of users: what is published there serves any installation.
    """
    if not await asyncio.to_thread(migrate.is_new, settings.resolved_database_url):
        return
    store = open_store(settings, Signer(b""))  # nothing is signed here
    try:
        found = [await _has_objects(store, folder) for folder in _USERS_FOLDERS]
    except UnavailableError as error:
        raise StartError(error.message) from error
    if any(found):
        raise StartError(
            f"The database is new, but {settings.resolved_storage_url} holds users' files or models. Restore the "
            "database that belongs to them, or choose another --home or TUNESMITH_STORAGE_URL."
        )


async def _has_objects(store: ObjectStore, folder: str) -> bool:
    async for page in store.scan(folder):
        return bool(page)  # S3's first page is an empty one where there is nothing
    return False


def _read_holder(file: IO[str]) -> str:
    file.seek(0)
    number = file.read(20)
    return f" (process {number})" if number.isdecimal() else ""


def _empty_spool(folder: Path) -> None:
    """Removes what a crash left half received, and has the framework keep the forms that it reads there as well."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    # The system's own folder for temporary files is often small, or in memory.
    tempfile.tempdir = str(folder)


@contextmanager
def listening_socket(settings: Settings) -> Iterator[socket.socket]:
    """The socket that REST listens on; raises StartError when it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol named, or the event loop would leave Nagle's algorithm on: 40 ms on every small answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        advice = f"{error.strerror}. Look at --host and --port."
        reason = "the port is in use. Choose another --port." if error.errno == errno.EADDRINUSE else advice
        message = f"HTTP cannot listen on {settings.host}:{settings.port}: {reason}"
        raise StartError(message) from error
    with listening:
        yield listening
