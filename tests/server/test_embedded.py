"""The gateway beside the server is started, started again, and never outlives its server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.live_server import wait_until
from tunesmith_server import embedded
from tunesmith_server.config import Settings
from tunesmith_server.embedded import GatewayProcess, InferenceMode, gateway_environment, plan_inference

# Writes its process id, then waits; told to end, it says so.
CHILD = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(*_):
    (folder / f"{os.getpid()}.ended").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
(folder / f"{os.getpid()}.pid").touch()
while True:
    time.sleep(0.1)
"""
PARENT = """
import asyncio, os, sys
from tunesmith_server.embedded import GatewayProcess
asyncio.run(GatewayProcess(os.environ, (sys.executable, "-c", sys.argv[1], sys.argv[2])).run())
"""


def pids(folder: Path) -> list[int]:
    return [int(path.stem) for path in sorted(folder.glob("*.pid"), key=lambda path: path.stat().st_mtime_ns)]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(folder: Path, count: int) -> None:
    await asyncio.to_thread(wait_until, lambda: len(pids(folder)) == count, 20, "the gateway was not started")


async def test_a_gateway_that_dies_is_started_again_and_ends_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FIRST_PAUSE_SECONDS", 0.01)
    gateway = asyncio.ensure_future(GatewayProcess(os.environ, (sys.executable, "-c", CHILD, str(tmp_path))).run())
    await until(tmp_path, 1)
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    await until(tmp_path, 2)

    gateway.cancel()
    await asyncio.gather(gateway, return_exceptions=True)

    last = pids(tmp_path)[-1]
    assert (tmp_path / f"{last}.ended").exists()
    assert not alive(last)


async def test_a_gateway_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_STOP_SECONDS", 0.2)
    deaf = CHILD.replace("signal.SIGTERM, end", "signal.SIGTERM, signal.SIG_IGN")
    gateway = asyncio.ensure_future(GatewayProcess(os.environ, (sys.executable, "-c", deaf, str(tmp_path))).run())
    await until(tmp_path, 1)

    gateway.cancel()
    await asyncio.gather(gateway, return_exceptions=True)

    assert not alive(pids(tmp_path)[0])


def test_a_killed_server_takes_its_gateway_with_it(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(tmp_path)])
    wait_until(lambda: len(pids(tmp_path)) == 1, 20, "the gateway was not started")
    child = pids(tmp_path)[0]

    parent.kill()
    parent.wait()

    wait_until(lambda: not alive(child), 20, "the gateway outlived its server")
    assert (tmp_path / f"{child}.ended").exists()


def test_the_plan_follows_what_was_asked_for(tmp_path: Path) -> None:
    python = tmp_path / "python"
    settings = Settings(home=tmp_path, engine_python=python)

    off = plan_inference(settings, "token", InferenceMode.OFF)
    missing = plan_inference(settings, "token", InferenceMode.BESIDE)
    elsewhere = plan_inference(settings, "token", InferenceMode.ELSEWHERE)
    configured = plan_inference(
        settings.model_copy(update={"gateway_url": "http://gateway"}), "token", InferenceMode.BESIDE
    )
    python.touch()
    beside = plan_inference(settings, "token", InferenceMode.BESIDE)

    assert (off.url, missing.url, elsewhere.url) == ("", "", "")
    assert "--no-inference" in off.reason_for_none
    assert str(python) in missing.reason_for_none
    assert "TUNESMITH_GATEWAY_URL" in elsewhere.reason_for_none
    assert (configured.url, configured.environment) == ("http://gateway", None)
    assert beside.environment is not None
    assert beside.url == f"http://127.0.0.1:{beside.environment['TUNESMITH_GATEWAY_PORT']}"


def test_the_gateway_learns_what_it_needs_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNESMITH_API_KEY", "TUNESMITH_SECRET_KEY", "TUNESMITH_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hidden")
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("TUNESMITH_HOLD_SECONDS", "5")
    settings = Settings(home=tmp_path, cache_dir=tmp_path / "cache", engine_python=tmp_path / "python", grpc_port=7)

    environment = gateway_environment(settings, "token", 9)

    assert "hidden" not in environment.values()
    assert (
        environment.items()
        >= {
            "TUNESMITH_CONTROL_PLANE": "127.0.0.1:7",
            "TUNESMITH_SERVICE_TOKEN": "token",
            "TUNESMITH_CACHE_DIR": str(tmp_path / "cache"),
            "TUNESMITH_GATEWAY_HOST": "127.0.0.1",
            "TUNESMITH_GATEWAY_PORT": "9",
            "TUNESMITH_ENGINE_PYTHON": str(tmp_path / "python"),
            "TUNESMITH_MAX_LORA_RANK": str(settings.max_lora_rank),
            "TUNESMITH_HOLD_SECONDS": "5",
        }.items()
    )
