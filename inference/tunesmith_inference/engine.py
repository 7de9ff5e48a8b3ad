"""Owns the life of one engine process: command line, start, readiness, restart with back-off, end.

It must not know which models are routed where, nor the engine's HTTP API beyond its client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_inference import engine_guard, tool_calls
from tunesmith_inference.config import Device, Settings
from tunesmith_inference.dialect import MAX_TOP_LOGPROBS
from tunesmith_inference.engine_memory import first_gpu_bytes, gpu_share
from tunesmith_inference.vllm import AdapterRefused, EngineUnavailable, VllmClient

_log = logging.getLogger(__name__)
_IN_ENGINE = Path(__file__).with_name("in_engine")
"""Modules that run in engines and know nothing of ours."""

START_SECONDS = 900.0
"""An engine that does not answer by then is started anew."""

_WITHOUT_ADAPTERS = frozenset({"gpt2"})
_PROBE_SECONDS = 5.0
_PROBE_MISSES = 6
_SUSPICIOUS_FAILURES = 3
_STEADY_SECONDS = 60.0
_FIRST_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 60.0
_STOP_SECONDS = engine_guard.GRACE_SECONDS + 5.0


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine serves: a model folder under a name, with or without adapters on top."""

    name: str
    model_folder: Path
    adapters: bool


def takes_adapters(model_folder: Path) -> bool:
    """Whether vLLM loads adapters for this architecture; told to, it would not start for the others."""
    return _config(model_folder).get("model_type") not in _WITHOUT_ADAPTERS


class EngineProcess:
    """Keeps one engine alive until cancelled; `command` gives the command line for a spec, settings and socket."""

    def __init__(self, settings: Settings, command: Callable[[EngineSpec, Settings, Path], list[str]]) -> None:
        self.starts = 0
        self.last_error: str | None = None
        self._settings = settings
        self._command = command
        self._condemned: asyncio.Future[str] | None = None

    def recycle(self, reason: str) -> None:
        """Ends the engine that runs now, which is of no use any more, so that a new one is started in its place."""
        if self._condemned is not None and not self._condemned.done():
            self._condemned.set_result(reason)

    async def run(
        self,
        spec: EngineSpec,
        ready: Callable[[VllmClient], Awaitable[None]],
        gone: Callable[[], None],
        max_failed_starts: int | None,
    ) -> None:
        """Starts the engine again and again; awaits `ready` when it answers and `gone` when it is of no use any more.

        Raises EngineUnavailable after so many starts in a row that gave no answer, and whatever else `ready` raises.
        A machine that is out of files, processes or disk is waited for like an engine that does not answer.
        """
        backoff, failed_starts = _FIRST_BACKOFF_SECONDS, 0
        while True:
            began = time.monotonic()
            try:
                async with self._alive(spec) as (client, process):
                    condemned = self._condemned = asyncio.get_running_loop().create_future()
                    try:
                        await ready(client)
                        failed_starts = 0
                        self.last_error = await _until_unusable(spec.name, client, process, condemned)
                    finally:
                        gone()
            except (EngineUnavailable, AdapterRefused, OSError) as error:
                self.last_error = str(error)
                failed_starts += 1
                if failed_starts == max_failed_starts:
                    raise EngineUnavailable(self.last_error) from error
            _log.error("engine %s ended: %s", spec.name, self.last_error)
            steady = time.monotonic() - began > _STEADY_SECONDS
            backoff = _FIRST_BACKOFF_SECONDS if steady else min(backoff * 2, _MAX_BACKOFF_SECONDS)
            await asyncio.sleep(backoff)

    @contextlib.asynccontextmanager
    async def _alive(self, spec: EngineSpec) -> AsyncIterator[tuple[VllmClient, Process]]:
        """One process, from a ready answer until the block is left; nothing of it is left behind."""
        self.starts += 1
        with tempfile.TemporaryDirectory(prefix="tunesmith-engine-") as folder:
            socket = Path(folder) / "engine.sock"
            key = secrets.token_urlsafe(32)
            process = await self._spawn(spec, socket, key)
            try:
                async with VllmClient(socket, key) as client:
                    await _until_answering(client, process)
                    yield client, process
            finally:
                await _end(process)

    async def _spawn(self, spec: EngineSpec, socket: Path, key: str) -> Process:
        logs = self._settings.cache_dir / "engine_logs"
        logs.mkdir(parents=True, exist_ok=True)
        guard = [sys.executable, engine_guard.__file__]
        command = await asyncio.to_thread(self._command, spec, self._settings, socket)  # it may ask the driver
        path = logs / f"{spec.name}.log"
        with contextlib.suppress(FileNotFoundError):
            # Kept: it tells why the last one ended, or belongs to another installation's engine that still writes it.
            path.replace(path.with_suffix(".log.1"))
        with path.open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *guard,
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=engine_environment(self._settings, key),
                start_new_session=True,
            )


def vllm_command(spec: EngineSpec, settings: Settings, socket: Path) -> list[str]:
    """The command line of a vLLM engine behind a unix socket."""
    # The CPU build's `vllm` command looks up a distribution name it does not have; the module works in both builds.
    command = [str(settings.engine_python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(spec.model_folder), "--served-model-name", spec.name, "--uds", str(socket)]
    command += ["--max-model-len", _model_len(spec.model_folder, settings)]
    # Messages are texts for every template, as they were in training.
    command += ["--chat-template-content-format", "string"]
    command += ["--disable-uvicorn-access-log", "--uvicorn-log-level", "warning", "--generation-config", "vllm"]
    command += ["--max-logprobs", str(MAX_TOP_LOGPROBS + 1)]
    if settings.device is Device.CPU:
        command += ["--dtype", "float32", "--enforce-eager", "--distributed-executor-backend", "uni"]
        command += ["--worker-extension-cls", "tunesmith_seeds.Extension"]
    else:
        share = gpu_share(spec.model_folder, settings.kv_cache_gib, first_gpu_bytes(), settings.max_engines)
        command += ["--gpu-memory-utilization", f"{share:.3f}", "--api-server-count", "1"]
    parser = tool_calls.parser_for(spec.model_folder)
    if parser is not None:
        # Arguments fit their schema also where the client does not say `strict`: nobody wants others.
        command += ["--enable-auto-tool-choice", "--tool-call-parser", parser, "--tool-strict-level", "parameter"]
        command += ["--tool-parser-plugin", str(_IN_ENGINE / "tunesmith_tools.py")]
    if spec.adapters:
        command += ["--enable-lora", "--max-loras", str(settings.max_loras)]
        command += ["--max-lora-rank", str(settings.max_lora_rank)]
        command += ["--max-cpu-loras", str(max(settings.max_loaded_adapters, settings.max_loras))]
    return command


def engine_environment(settings: Settings, key: str) -> dict[str, str]:
    """The gateway's environment without its secrets, plus what the engine reads."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TUNESMITH_", "AWS_"))}
    environment |= {
        # Not on the command line, where every user of the machine could read it.
        "VLLM_API_KEY": key,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_PLUGINS": "",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(settings.cache_dir / "engine_cache"),
        "HF_HUB_OFFLINE": "1",
        # Its process group of one listens, on the first interface otherwise.
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if settings.device is Device.CPU:
        threads = settings.engine_threads or len(os.sched_getaffinity(0))
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
            # Scheduler and model in one process; without this the engine turns the executor `uni` into `mp`.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": str(_IN_ENGINE),
            # Ranks of log-probabilities are compiled in eager mode, too: where there is no C++ compiler, the first
            # request for log-probabilities would end the engine.
            "TORCH_COMPILE_DISABLE": "1",
        }
    else:
        environment |= {
            # It is compiled at the first start, by CUDA's own compiler, which is part of no driver and of no wheel.
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            # Tools of the engine's environment that what is compiled nevertheless asks for by name.
            "PATH": f"{settings.engine_python.parent}{os.pathsep}{environment.get('PATH', os.defpath)}",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the first GPU is the one that nvidia-smi lists first
        }
    return environment


async def _until_answering(client: VllmClient, process: Process) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not await client.healthy():
        if process.returncode is not None:
            raise EngineUnavailable("it ended while starting; its log tells why")
        if time.monotonic() > deadline:
            raise EngineUnavailable(f"it did not answer within {START_SECONDS:.0f} s")
        await asyncio.sleep(0.2)


async def _until_unusable(name: str, client: VllmClient, process: Process, condemned: asyncio.Future[str]) -> str:
    """Returns why the engine cannot be used any more.

    One that fails on every request may have met bad requests: it is of no use if it fails on ours as well.
    """
    ended: asyncio.Future[Any] = asyncio.ensure_future(process.wait())
    misses = 0
    try:
        while misses < _PROBE_MISSES:
            await asyncio.wait([ended, condemned], timeout=_PROBE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if condemned.done():
                return condemned.result()
            if ended.done():
                return "it ended; its log tells why"
            misses = 0 if await client.healthy() else misses + 1
            if client.failures >= _SUSPICIOUS_FAILURES and not misses and not await client.computes(name):
                return "it says that it is well and fails on every request"
    finally:
        ended.cancel()
    return f"it did not answer {_PROBE_MISSES} health probes"


async def _end(process: Process) -> None:
    """Lets the guard end the engine, and makes sure that nothing of its process group is left."""
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_bytes())
    return config if isinstance(config, dict) else {}


def _model_len(folder: Path, settings: Settings) -> str:
    if settings.max_model_len is None:
        return "auto"  # the model's own, or the longest that fits into the engine's memory
    config = _config(folder)
    own = config.get("max_position_embeddings", config.get("n_positions"))  # GPT-2 has its own word
    return str(min(settings.max_model_len, own) if isinstance(own, int) else settings.max_model_len)
