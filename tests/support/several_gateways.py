"""Owns several gateways as processes of their own, each with its engines, on one or more real control planes.

It must not know what a test does with them. Engines are simulators; models are written to database and object store as
a run's end does it.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from tests.deploy.service import Service
from tests.inference import gateway
from tests.support import engine_simulator, processes
from tests.support.artifacts import BASE_ID, BASE_SHAPES, safetensors_bytes
from tests.support.fake_importer import write_fake_importer
from tests.support.live_server import LiveServer
from tests.support.ports import free_ports
from tests.support.registry import publish_tuned_model
from tunesmith_server.auth import Signer
from tunesmith_server.clock import system_clock
from tunesmith_server.config import Settings
from tunesmith_server.core import Core
from tunesmith_server.db.session import Database
from tunesmith_server.db.tables import BaseModelRow
from tunesmith_server.registry.manifest import ArtifactKind
from tunesmith_server.storage.open import open_store

API_KEY = "ts-" + "k" * 40
_SECRET_KEY = "s" * 64
_SERVICE_TOKEN = "t" * 40


class RunningGateway:
    """One gateway; the others reach it at its own URL."""

    def __init__(self, folder: Path, control_plane: LiveServer, settings: dict[str, str]) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.AsyncClient(
            base_url=self.url, headers={"authorization": f"Bearer {API_KEY}"}, timeout=60, trust_env=False
        )
        self.log = folder / "gateway.log"
        self._environment = os.environ | {
            "TUNESMITH_CONTROL_PLANE": control_plane.grpc_address,
            "TUNESMITH_SERVICE_TOKEN": _SERVICE_TOKEN,
            "TUNESMITH_CACHE_DIR": str(folder / "cache"),
            "TUNESMITH_GATEWAY_PORT": str(self.port),
            "TUNESMITH_GATEWAY_ADDRESS": self.url,
            "TUNESMITH_ENGINE_PYTHON": str(_write_engine_python(folder)),
            "TUNESMITH_ENGINE_DEVICE": "cpu",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, without waiting."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tunesmith_inference"], env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """kill -9, as a crash does it; its engines end by themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, if it lives; returns when it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)

    async def health(self) -> dict[str, Any]:
        """What it says of itself; nothing before it serves."""
        try:
            said: dict[str, Any] = (await self.http.get("/health")).json()
        except httpx.TransportError:
            return {"engines": [], "peers": []}
        return said

    async def chat(self, model: str, text: str = "hello there", **parameters: Any) -> httpx.Response:
        """One chat request."""
        return await self.http.post("/v1/chat/completions", json=chat_body(model, text, **parameters))

    async def adapters(self) -> set[str]:
        """The first characters of the revisions that are ready in its engine."""
        return {
            revision
            for engine in (await self.health())["engines"]
            for revision, state in engine["adapters"].items()
            if state == "ready"
        }

    async def engine(self) -> dict[str, Any]:
        """What its base model's engine says of itself, with the number of requests that it works on as `running`."""
        assert self._process is not None
        async with gateway.engine_http(_base_socket_below(self._process.pid)) as client:
            state: dict[str, Any] = (await client.get("/simulator")).json()
            return state | {"running": await gateway.requests_running(client)}

    async def forwarded(self, outcome: str) -> int:
        """How many requests it has passed on, to that outcome."""
        sample = f'tunesmith_gateway_forwarded_total{{outcome="{outcome}"}} '
        lines = (await self.http.get("/metrics")).text.splitlines()
        return sum(int(float(line.removeprefix(sample))) for line in lines if line.startswith(sample))


class SeveralGateways:
    """The gateways, and the control planes that they talk to, one each in turn."""

    def __init__(self, core: Core, control_planes: list[LiveServer], gateways: list[RunningGateway]) -> None:
        self.control_planes = control_planes
        self.gateways = gateways
        self.revisions: dict[str, str] = {}
        """Of the models that were published, by name."""
        self._core = core

    async def publish(self, name: str, weights: str, *, full: bool = False) -> None:
        """Gives a name to an adapter, or to a whole model, as the end of a job does it."""
        files = gateway.full_files(weights) if full else gateway.adapter_files(weights)
        kind = ArtifactKind.FULL if full else ArtifactKind.ADAPTER
        async with self._core.database.read() as session:
            base = await session.scalar(select(BaseModelRow.revision).where(BaseModelRow.id == BASE_ID))
        assert base is not None
        self.revisions[name] = await publish_tuned_model(self._core, name, base, files=files, kind=kind)

    async def model_of(self, one: RunningGateway) -> str:
        """The name of a model that is ready there."""
        held = await one.adapters()
        return next(name for name, revision in self.revisions.items() if revision[:16] in held)

    def engine_name(self, model: str) -> str:
        """What engines call it."""
        return f"r-{self.revisions[model][:16]}"

    async def until_they_know_each_other(self) -> None:
        """Returns when each has its engine and has heard of all others."""

        async def know() -> bool:
            said = [await each.health() for each in self.gateways]
            return all(
                len(one["peers"]) == len(self.gateways) - 1 and {each["state"] for each in one["engines"]} == {"ready"}
                for one in said
            )

        await gateway.until(know, 60)


def chat_body(model: str, text: str, **parameters: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **parameters}


@asynccontextmanager
async def several_gateways(
    folder: Path, database_url: str, *, gateways: int = 2, control_planes: int = 2, **settings: str
) -> AsyncIterator[SeveralGateways]:
    """Starts everything below `folder`; returns before the gateways are ready. `settings` are the gateways'.

    Requests to a control plane come in at one gateway or the other, as behind a Service.
    """
    storage_url = (folder / "objects").as_uri()
    async with AsyncExitStack() as stack:
        entrance = Service()
        await stack.enter_async_context(entrance.running())
        environment = _control_plane_environment(folder, database_url, storage_url)
        environment["TUNESMITH_GATEWAY_URL"] = f"http://127.0.0.1:{entrance.port}"
        homes = [folder / f"home-{number}" for number in range(control_planes)]
        servers = [LiveServer(home, inference=True, environment=environment) for home in homes]
        core = _core(folder, database_url, storage_url, servers[0].url)
        stack.push_async_callback(core.database.close)
        stack.push_async_callback(_all_at_once, [server.stop for server in servers])
        await _all_at_once([server.start for server in servers])
        made = []
        for number in range(gateways):
            (folder / f"gateway-{number}").mkdir()
            one = RunningGateway(folder / f"gateway-{number}", servers[number % control_planes], settings)
            made.append(one)
            entrance.backends.append(one.port)
            one.start()
            stack.push_async_callback(one.http.aclose)
        stack.push_async_callback(_all_at_once, [one.stop for one in made])
        yield SeveralGateways(core, servers, made)


async def _all_at_once(steps: Iterable[Callable[[], object]]) -> None:
    await asyncio.gather(*(asyncio.to_thread(step) for step in steps))


def _control_plane_environment(folder: Path, database_url: str, storage_url: str) -> dict[str, str]:
    catalogue = folder / "base_models.yaml"
    catalogue.write_text(f"- {{id: {BASE_ID}, source: 'toy:base'}}\n")
    settings = {
        "api_key": API_KEY,
        "secret_key": _SECRET_KEY,
        "service_token": _SERVICE_TOKEN,
        "database_url": database_url,
        "storage_url": storage_url,
        "base_models": str(catalogue),
        "cache_dir": str(folder / "cache"),
        "trainer_python": str(write_fake_importer(folder, safetensors_bytes(BASE_SHAPES))),
    }
    return {f"TUNESMITH_{name.upper()}": value for name, value in settings.items()}


def _core(folder: Path, database_url: str, storage_url: str, public_url: str) -> Core:
    """The test's own way to database and object store."""
    settings = Settings(home=folder / "test", database_url=database_url, storage_url=storage_url, public_url=public_url)
    signer = Signer(_SECRET_KEY.encode())
    return Core(settings, Database(database_url), open_store(settings, signer, system_clock), signer, system_clock)


def _write_engine_python(folder: Path) -> Path:
    """An interpreter that starts the simulator in place of vLLM."""
    script = folder / "engine-python"
    script.write_text(f'#!/bin/sh\nshift 2\nexec {shlex.join(engine_simulator.COMMAND)} "$@"\n')
    script.chmod(0o755)
    return script


def _base_socket_below(pid: int) -> Path:
    """Where the engine of a gateway's base model listens."""
    lines = [processes.words(each, "cmdline") for each in processes.descendants(pid)]
    (socket,) = {line[line.index("--uds") + 1] for line in lines if "--uds" in line and "base_models" in str(line)}
    return Path(socket)
