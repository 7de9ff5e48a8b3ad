"""Owns the pinned clients: each in an environment of its own, made once per machine and kept in the cache; drives one.

It must not know what the clients are asked to do; the scripts in drivers/ do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.support.own_environment import made_once, python_environment, run_installer

_DRIVERS = Path(__file__).with_name("drivers")


@dataclass(frozen=True, slots=True)
class Client:
    """One release of one client library, and the script that drives it."""

    name: str
    requirements: tuple[str, ...]
    driver: str

    def command(self, settings: str) -> list[str]:
        """What runs the driver; makes the client's environment the first time."""
        environment = _environment(self)
        if self.driver.endswith(".mjs"):
            # A script finds packages beside itself only, hence the copy.
            for script in _DRIVERS.glob("*.mjs"):
                shutil.copy(script, environment / script.name)
            return ["node", str(environment / self.driver), settings]
        return [str(environment / "bin" / "python"), str(_DRIVERS / self.driver), settings]


PYTHON_CLIENTS = (
    Client("openai 0.28.1", ("openai==0.28.1",), "openai_0.py"),
    Client("openai 1.6.1", ("openai==1.6.1", "httpx<0.28"), "openai_1_6.py"),
    Client("openai 1.109.1", ("openai==1.109.1",), "openai_modern.py"),
    # The newest is the one that development has, which `make lock` refreshes.
    Client(f"openai {metadata.version('openai')}", (f"openai=={metadata.version('openai')}",), "openai_modern.py"),
)
NODE_CLIENT = Client("node openai 7.57.0", ("openai@7.57.0",), "openai_node.mjs")
CLIENTS = (*PYTHON_CLIENTS, NODE_CLIENT)
SERVING_CLIENTS = (
    *(replace(client, driver="openai_serving.py") for client in PYTHON_CLIENTS[2:]),
    replace(NODE_CLIENT, driver="openai_node_serving.mjs"),
)
"""Those that ask a tuned model, and nothing else."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client and what went wrong with it."""

    name: str
    error: str = ""


def drive(client: Client, settings: dict[str, Any], seconds: float) -> list[Call]:
    """Runs the client's driver and gives its calls, with an own one for a driver that failed as a whole."""
    command = client.command(json.dumps(settings))
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"call"')]
    calls = [Call(line["call"], line.get("error", "")) for line in lines]
    if result.returncode:
        calls.append(Call("the whole driver", result.stderr[-2000:]))
    return calls


def _environment(client: Client) -> Path:
    """The folder of the client's environment, complete."""
    name = f"conformance/{client.name.replace(' ', '-')}"
    if client.driver.endswith(".mjs"):
        return made_once(name, [client.requirements, "node"], partial(_install_node, client.requirements))
    return python_environment(name, client.requirements)


def _install_node(requirements: tuple[str, ...], folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    run_installer("npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", *requirements)
