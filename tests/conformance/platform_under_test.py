"""Owns the platform that clients are driven against: real server, gateway and processes; only the training is made up.

It must not know any client.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance.wire import Relay
from tests.inference.gateway import golden
from tests.support import engine_simulator
from tests.support.artifacts import BASE_ID, BASE_SHAPES, adapter_files, safetensors_bytes
from tests.support.fake_importer import write_fake_importer
from tests.support.fake_trainer import Controls, write_fake_python
from tests.support.live_server import LiveServer

HOLD_STEP = 3
OTHER_PROJECT = "other"


@dataclass(frozen=True, slots=True)
class PlatformUnderTest:
    """A running platform behind a relay that remembers what clients said and heard."""

    server: LiveServer
    relay: Relay
    controls: Controls
    key: str
    """Of the default project, for everything within it."""
    other_key: str
    """Of another project."""

    def settings(self) -> dict[str, Any]:
        """What a driver has to know."""
        return {
            "url": f"http://127.0.0.1:{self.relay.port}/v1",
            "key": self.key,
            "admin_key": self.server.api_key,
            "other_key": self.other_key,
            "other_project": OTHER_PROJECT,
            "base_model": BASE_ID,
            "hold_file": str(self.controls.folder / f"hold-{HOLD_STEP}"),
        }


def simulated_environment(folder: Path) -> dict[str, str]:
    """The settings of a platform below `folder` whose base model and engine are made up."""
    catalogue = folder / "base_models.yaml"
    catalogue.write_text(f"- {{id: {BASE_ID}, source: 'toy:base', aliases: [gpt-4o-mini-2024-07-18, davinci]}}\n")
    importer = write_fake_importer(folder, safetensors_bytes(BASE_SHAPES))
    return {
        "PATH": os.environ["PATH"],
        "TUNESMITH_CACHE_DIR": str(folder / "cache"),
        "TUNESMITH_BASE_MODELS": str(catalogue),
        "TUNESMITH_TRAINER_PYTHON": str(write_fake_python(folder, importer)),
        "TUNESMITH_ENGINE_PYTHON": str(_write_engine_python(folder)),
        "TUNESMITH_ENGINE_DEVICE": "cpu",
        "TUNESMITH_MAX_CONCURRENT_RUNS": "4",
        "TUNESMITH_WEBHOOK_ALLOW_PRIVATE": "true",
    }


@contextmanager
def running_platform(folder: Path) -> Iterator[PlatformUnderTest]:
    """Starts everything below `folder` and ends it with the block."""
    controls = Controls(folder / "cache")
    # The simulator answers through these adapters as the base model does, and that is what their record says.
    controls.write_adapter(adapter_files() | {"golden.json": golden("")})
    environment = simulated_environment(folder)
    with LiveServer(folder / "home", inference=True, environment=environment) as server, Relay(server.port) as relay:
        project = server.request("POST", "/organization/projects", json={"name": "Other", "id": OTHER_PROJECT})
        assert project.status_code == 200, project.text
        yield PlatformUnderTest(server, relay, controls, _make_key(server, "default"), _make_key(server, OTHER_PROJECT))


def _make_key(server: LiveServer, project: str) -> str:
    body = {"name": "driver", "capture": True}
    made = server.request("POST", f"/organization/projects/{project}/api_keys", json=body)
    assert made.status_code == 200, made.text
    key: str = made.json()["value"]
    return key


def _write_engine_python(folder: Path) -> Path:
    """An interpreter that starts the simulator in place of vLLM."""
    script = folder / "engine-python"
    script.write_text(f'#!/bin/sh\nshift 2\nexec {shlex.join(engine_simulator.COMMAND)} "$@"\n')
    script.chmod(0o755)
    return script
