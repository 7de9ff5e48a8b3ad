"""Owns the gateway process beside the server: whether there is one, its environment, its restarts, its end.

It must not know what a gateway does with its engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tunesmith_server.config import Settings
from tunesmith_server.parent_guard import guarded

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_HEALTHY_SECONDS = 60.0
_STOP_SECONDS = 30.0
# What only the control plane may know.
_SECRETS = frozenset({"TUNESMITH_API_KEY", "TUNESMITH_SECRET_KEY", "TUNESMITH_DATABASE_URL", "TUNESMITH_STORAGE_URL"})
_SECRET_PREFIXES = ("AWS_", "MLFLOW_", "WANDB_")


class InferenceMode(StrEnum):
    """What an operator can ask for."""

    BESIDE = "beside"
    """A gateway that this server starts."""
    ELSEWHERE = "elsewhere"
    """A gateway that somebody else runs."""
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Inference:
    """Where inference happens: `url` of a gateway, or "" and the sentence that says why there is none.

    `environment` is set when the gateway is this process's to run.
    """

    url: str
    reason_for_none: str = ""
    environment: Mapping[str, str] | None = None


def engine_python(settings: Settings) -> Path:
    """The interpreter that has vLLM: as set, or `.venv-engine` beside the running environment."""
    return (settings.engine_python or Path(sys.prefix).parent / ".venv-engine" / "bin" / "python").absolute()


def plan_inference(settings: Settings, service_token: str, mode: InferenceMode) -> Inference:
    """Decides where inference happens; TUNESMITH_GATEWAY_URL wins over a gateway beside the server."""
    if mode is InferenceMode.OFF:
        return Inference("", "Inference is off because the server was started with --no-inference.")
    if settings.gateway_url:
        return Inference(settings.gateway_url)
    if mode is InferenceMode.ELSEWHERE:
        return Inference("", "Inference is off because TUNESMITH_GATEWAY_URL is not set.")
    python = engine_python(settings)
    if not python.exists():
        return Inference(
            "",
            f"Inference is off because there is no engine environment at {python}. "
            "Run `make install`, or set TUNESMITH_ENGINE_PYTHON, and start again.",
        )
    port = _free_port()
    return Inference(f"http://127.0.0.1:{port}", environment=gateway_environment(settings, service_token, port))


def gateway_environment(settings: Settings, service_token: str, port: int) -> dict[str, str]:
    """Everything that a gateway on this machine needs, and no secret of the control plane."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _SECRETS and not name.startswith(_SECRET_PREFIXES)
    }
    return kept | {
        "TUNESMITH_CONTROL_PLANE": settings.resolved_grpc_address,
        "TUNESMITH_SERVICE_TOKEN": service_token,
        "TUNESMITH_CACHE_DIR": str(settings.cache_dir.absolute()),
        "TUNESMITH_GATEWAY_HOST": "127.0.0.1",
        "TUNESMITH_GATEWAY_PORT": str(port),
        "TUNESMITH_ENGINE_PYTHON": str(engine_python(settings)),
        "TUNESMITH_MAX_LORA_RANK": str(settings.max_lora_rank),
    }


class GatewayProcess:
    """Keeps one gateway running until it is stopped."""

    def __init__(self, environment: Mapping[str, str], command: tuple[str, ...] | None = None) -> None:
        self._environment = dict(environment)
        self._command = command or (sys.executable, "-m", "tunesmith_inference")

    async def run(self) -> None:
        """Starts the gateway again whenever it ends, with growing pauses; cancel it to stop the gateway."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            code = await self._run_once()
            if time.monotonic() - started > _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            _log.error("the gateway ended; it is started again", extra={"fields": {"exit_code": code, "after": pause}})
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _run_once(self) -> int:
        process = await asyncio.create_subprocess_exec(
            *guarded(*self._command),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            # Standard output belongs to the line that says ready.
            stdout=sys.stderr.fileno(),
            # Ctrl-C reaches the whole foreground group; the gateway is to end when we say so, after the drain.
            start_new_session=True,
        )
        try:
            return await process.wait()
        finally:
            await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                _log.warning("the gateway did not stop in time and is killed")
                process.kill()
                await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
