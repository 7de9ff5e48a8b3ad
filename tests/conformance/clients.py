"""Owns the pinned clients: each in an environment of its own, made once per machine and kept in the cache.

It must not know what the clients are asked to do; the scripts in drivers/ do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tunesmith_server.config import default_cache_dir

_DRIVERS = Path(__file__).with_name("drivers")
_INSTALL_SECONDS = 600


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


def _environment(client: Client) -> Path:
    """The folder of the client's environment, complete."""
    is_node = client.driver.endswith(".mjs")
    facts = json.dumps([client.requirements, "node" if is_node else [sys.version, sys.prefix]])
    key = hashlib.sha256(facts.encode()).hexdigest()[:8]
    folder = default_cache_dir() / "conformance" / f"{client.name.replace(' ', '-')}-{key}"
    with _one_at_a_time(folder.with_name(folder.name + ".lock")):
        complete = folder / "complete"
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            install: Callable[[Path, tuple[str, ...]], None] = _install_node if is_node else _install_python
            install(folder, client.requirements)
            complete.touch()
    return folder


def _install_python(folder: Path, requirements: tuple[str, ...]) -> None:
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    _run(sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q", *requirements)


def _install_node(folder: Path, requirements: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    _run("npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", *requirements)


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS)
    if result.returncode:
        raise AssertionError(f"{' '.join(command)} failed; the tests need the package index:\n{result.stderr[-2000:]}")


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Two test processes may want the same environment at once; the kernel frees the lock of a dead one."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
