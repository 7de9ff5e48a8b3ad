"""Starts the whole platform on this machine as `tunesmithd up` and stops it again.

It knows nothing of fine-tunes: it hands out a base URL and a key.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STARTUP_LIMIT_S = 300.0
SHUTDOWN_LIMIT_S = 60.0
_KEPT_SETTINGS = ("TUNESMITH_CACHE_DIR", "TUNESMITH_ENGINE_PYTHON")
_POLL_S = 0.2


class PlatformFailed(Exception):
    """The platform did not come up; the message says where to look."""


@dataclass(frozen=True)
class RunningPlatform:
    """A platform that serves: where it is, and the key of its default project."""

    url: str
    api_key: str
    process_id: int


@contextmanager
def local_platform(folder: Path, keep: bool) -> Iterator[RunningPlatform]:
    """Runs the platform with its home in `folder`/home and its log in `folder`/platform.log.

    Ends it on leaving, however that happens, unless `keep` is set and nothing went wrong.

    Raises PlatformFailed if it exits early, takes longer than five minutes, or an earlier one still runs on the home.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "platform.url"
    _refuse_a_second_one(record)
    log = folder / "platform.log"
    process = _spawn(folder / "home", log)
    leave_running = False
    try:
        url = _wait_until_ready(process, log)
        record.write_text(url, encoding="utf-8")
        yield RunningPlatform(url, (folder / "home" / "api_key").read_text(encoding="utf-8").strip(), process.pid)
        leave_running = keep
    finally:
        if not leave_running:
            _stop(process)
            record.unlink(missing_ok=True)


def _refuse_a_second_one(record: Path) -> None:
    """Two platforms on one home would share a database; the one that --keep left is found by its URL."""
    if not record.exists():
        return
    url = record.read_text(encoding="utf-8")
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except (OSError, ValueError, urllib.error.URLError):
        return
    raise PlatformFailed(f"A platform from an earlier --keep still serves {url} from this folder: stop it first.")


def _spawn(home: Path, log: Path) -> "subprocess.Popen[bytes]":
    # A setting of another installation must not turn this one into something else.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TUNESMITH_") or k in _KEPT_SETTINGS}
    ports = (*("--port", _free_port(8000)), *("--grpc-port", _free_port(8001)))
    command = (Path(sys.executable).with_name("tunesmithd"), "up", "--home", home, *ports)
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this script only, which then ends the platform in order.
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)


def _free_port(preferred: int) -> str:
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return str(probe.getsockname()[1])
    raise PlatformFailed("No free port on 127.0.0.1.")


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + STARTUP_LIMIT_S
    while time.monotonic() < deadline:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if line.startswith("ready http") and line.endswith("\n"):
                return line.split()[1]
        if process.poll() is not None:
            raise PlatformFailed(f"The platform stopped while it started (exit status {process.returncode}).")
        time.sleep(_POLL_S)
    raise PlatformFailed(f"The platform was not ready after {STARTUP_LIMIT_S:.0f} s.")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(SHUTDOWN_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
