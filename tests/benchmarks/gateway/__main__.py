"""Measures what the gateway adds to an engine's answers, beside a well-known proxy in front of the same engine.

.venv/bin/python -m tests.benchmarks.gateway [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from tests.benchmarks.gateway.load import Load, Outcome, Place, run
from tests.conformance.platform_under_test import PlatformUnderTest, running_platform
from tests.support import engine_simulator
from tests.support.artifacts import BASE_ID
from tests.support.ports import free_ports

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"
KEY = "benchmark"
MODEL = "bare"

PACED = "fault:slow one two three"
"""The simulator gives a token every 50 ms: what is measured is what is added, not how fast a machine can spin."""
LOADS = (
    Load(1, 10, 10, PACED),
    Load(50, 200, 20, PACED),
    Load(500, 500, 20, PACED),
)
FLOOD = Load(50, 400, 20, "one two three")


def main() -> None:
    """Prints one table per load and one for the flood."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        platform = stack.enter_context(running_platform(folder))
        engine = stack.enter_context(_engine(folder))
        proxy = stack.enter_context(_opponent(folder, engine))
        places = [engine, _gateway(platform), _control_plane(platform), proxy]
        for load in LOADS:
            _print_latencies(load, _measure(places, load, rounds))
        _print_throughput(_measure(places, FLOOD, rounds))


def _measure(places: Sequence[Place], load: Load, rounds: int) -> dict[str, list[Outcome]]:
    """Every place under the same load in turn, so that a slow minute of the machine meets all of them."""
    found: dict[str, list[Outcome]] = {place.name: [] for place in places}
    warm_up = Load(load.streams, load.streams, 2, "one two three")
    for _ in range(rounds):
        for place in places:
            asyncio.run(run(place, warm_up))
            found[place.name].append(asyncio.run(run(place, load)))
    return found


def _print_latencies(load: Load, found: dict[str, list[Outcome]]) -> None:
    print(f"\n## {load.streams} streams at once, {load.total} of {load.tokens} tokens, one every 50 ms\n")
    print("| ms, median of rounds | first p50 | first p99 | whole p50 | whole p99 |\n|---|---|---|---|---|")
    bare: list[float] = []
    for name, outcomes in found.items():
        figures = [
            statistics.median(outcome.percentile(share, what) for outcome in outcomes)
            for what in ("first", "whole")
            for share in (0.5, 0.99)
        ]
        shown = figures if not bare else [figure - base for figure, base in zip(figures, bare, strict=True)]
        sign = "+" if bare else ""
        bare = bare or figures
        print(f"| {name} | " + " | ".join(f"{figure:{sign}.1f}" for figure in shown) + " |", flush=True)


def _print_throughput(found: dict[str, list[Outcome]]) -> None:
    print(f"\n## As many as it takes: {FLOOD.streams} streams at once, {FLOOD.tokens} tokens each\n")
    print("| median of rounds | tokens/s | to the engine alone |\n|---|---|---|")
    alone = 0.0
    for name, outcomes in found.items():
        speed = statistics.median(FLOOD.total * FLOOD.tokens / outcome.seconds for outcome in outcomes)
        alone = alone or speed
        print(f"| {name} | {speed:.0f} | {speed / alone:.2f} |", flush=True)


@contextlib.contextmanager
def _engine(folder: Path) -> Iterator[Place]:
    """The simulator alone."""
    model = folder / "bare"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (port,) = free_ports(1)
    command = [*engine_simulator.COMMAND, "--model", str(model), "--served-model-name", MODEL]
    with _process([*command, "--port", str(port)], {"VLLM_API_KEY": KEY}, f"http://127.0.0.1:{port}/health", folder):
        yield Place("engine alone", port, KEY, MODEL)


@contextlib.contextmanager
def _opponent(folder: Path, engine: Place) -> Iterator[Place]:
    """LiteLLM's proxy in front of that engine, from an environment of its own that is made on first use."""
    home = CACHE / "benchmarks" / "litellm"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", str(HERE / "requirements-opponent.txt")], check=True)
    upstream = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{engine.port}/v1", "api_key": KEY}
    config = folder / "litellm.json"  # which YAML takes as well
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": upstream}]}))
    (port,) = free_ports(1)
    command = [str(home / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with _process(command, environment, f"http://127.0.0.1:{port}/health/liveliness", folder):
        yield Place("litellm's proxy", port, KEY, MODEL)


@contextlib.contextmanager
def _process(command: Sequence[str], environment: dict[str, str], health: str, folder: Path) -> Iterator[None]:
    with (folder / "processes.log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not _answers(health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "processes.log").read_text()[-3000:])
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _gateway(platform: PlatformUnderTest) -> Place:
    """The gateway of the platform, asked itself."""
    children = Path(f"/proc/{platform.server.pid}/task/{platform.server.pid}/children").read_text().split()
    ports = {
        value
        for child in children
        for name, _, value in (
            line.partition("=") for line in Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        )
        if name == "TUNESMITH_GATEWAY_PORT"
    }
    (port,) = ports
    return Place("gateway", int(port), platform.key, BASE_ID)


def _control_plane(platform: PlatformUnderTest) -> Place:
    """The port that everybody is told: the control plane's, with the gateway behind it."""
    return Place("control plane and gateway", platform.server.port, platform.key, BASE_ID)


if __name__ == "__main__":
    main()
