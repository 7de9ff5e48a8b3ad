"""Owns the engines that tests of this folder share, one of each kind for the whole run: the simulator and real vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.architecture.source_tree import ROOT
from tests.inference import gateway, real_model
from tests.support import processes
from tunesmith_inference.config import Settings
from tunesmith_inference.engine import EngineProcess, EngineSpec, vllm_command
from tunesmith_inference.vllm import VllmClient

MODEL = "base-1"


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine behind the gateway's client and behind none, a folder for adapters, and a maker of such."""

    client: VllmClient
    http: httpx.AsyncClient
    pid: int
    base: Path
    folder: Path
    make_adapter: Callable[[Path, int], Path]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def simulator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """The simulator."""
    folder = tmp_path_factory.mktemp("simulator")
    base = gateway.make_base(folder)

    def make_adapter(target: Path, seed: int) -> Path:
        target.mkdir(parents=True)
        for name, content in gateway.adapter_files(f"adapter {seed}").items():
            (target / name).write_bytes(content)
        return target

    settings = Settings(cache_dir=folder, engine_device="cpu")
    async with _running(settings, base, gateway.simulator_command) as (client, http, pid):
        yield Engine(client, http, pid, base, folder, make_adapter)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """Real vLLM on a small random model."""
    folder = tmp_path_factory.mktemp("vllm")
    base = await asyncio.to_thread(real_model.build_base, folder / "base")
    python = os.environ.get("TUNESMITH_ENGINE_PYTHON") or ROOT / ".venv-engine/bin/python"
    settings = Settings(cache_dir=folder, engine_device="cpu", engine_python=Path(python), max_lora_rank=16)
    async with _running(settings, base, vllm_command) as (client, http, pid):
        yield Engine(client, http, pid, base, folder, lambda target, seed: real_model.build_adapter(base, target, seed))


@pytest.fixture(scope="session", params=["simulator", pytest.param("vllm", marks=pytest.mark.engine)])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each of the two."""
    running: Engine = request.getfixturevalue(request.param)
    return running


@contextlib.asynccontextmanager
async def _running(
    settings: Settings, base: Path, command: Callable[[EngineSpec, Settings, Path], list[str]]
) -> AsyncIterator[tuple[VllmClient, httpx.AsyncClient, int]]:
    """An engine process for the time of a block."""
    up = asyncio.Event()
    clients: list[VllmClient] = []
    sockets: list[Path] = []

    async def ready(client: VllmClient) -> None:
        clients.append(client)
        up.set()

    def noting_socket(spec: EngineSpec, settings: Settings, socket: Path) -> list[str]:
        sockets.append(socket)
        return command(spec, settings, socket)

    spec = EngineSpec(MODEL, base, adapters=True)
    engine = EngineProcess(settings, noting_socket)
    living: asyncio.Task[Any] = asyncio.create_task(engine.run(spec, ready, lambda: None, 1))
    try:
        waiting: asyncio.Task[Any] = asyncio.create_task(up.wait())
        await asyncio.wait([waiting, living], return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            living.result()
        async with gateway.engine_http(sockets[0]) as http:
            yield clients[0], http, processes.engine_at(sockets[0])
    finally:
        waiting.cancel()
        living.cancel()
        await asyncio.wait([living])
