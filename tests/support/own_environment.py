"""Owns environments apart from the development one, for what does not go with it: made once per machine, then cached.

It must not know what is done with the packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith_server.config import default_cache_dir

_INSTALL_SECONDS = 600


def python_environment(name: str, requirements: Sequence[str]) -> Path:
    """The folder of a virtual environment with these packages; `name` is a path below the cache."""

    def install(folder: Path) -> None:
        run_installer(sys.executable, "-m", "venv", "--without-pip", str(folder))
        python = str(folder / "bin" / "python")
        run_installer(sys.executable, "-m", "pip", "--python", python, "install", "-q", *requirements)

    return made_once(name, [requirements, [sys.version, sys.prefix]], install)


def made_once(name: str, facts: object, install: Callable[[Path], None]) -> Path:
    """The folder that `install` has filled, complete; another one for other `facts`."""
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    folder = default_cache_dir() / f"{name}-{key}"
    with _one_at_a_time(folder.with_name(folder.name + ".lock")):
        complete = folder / "complete"
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            install(folder)
            complete.touch()
    return folder


def run_installer(*command: str) -> None:
    """Runs a command that installs; AssertionError with its last words when it fails."""
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
