"""Owns runs as processes of this machine: one folder and one session (setsid) per attempt.

It must not know jobs or the database. A run outlives the control plane and is found again by process id and start time.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors import local_devices, supervisor
from tunesmith_server.executors.base import Inventory, Launch, Observation, RunState, require_attempt_id
from tunesmith_server.failpoints import reach
from tunesmith_server.tail import read_tail

_TOKEN_FILE = "token"  # noqa: S105 (a file name)
_CONTROL_PLANE_FILE = "control_plane"  # beside the folder of runs
_LAUNCH_LIMIT_SECONDS = 30.0
_KILL_LIMIT_SECONDS = 30.0
_POLL_SECONDS = 0.05
# What a run inherits. Credentials of the database and the object store are never among them.
_INHERITED_NAMES = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LC_ALL",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "NVIDIA_VISIBLE_DEVICES",
        "CC",
        "CXX",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    }
)
_INHERITED_PREFIXES = ("CUDA_", "NCCL_", "OMP_", "MKL_", "TORCHINDUCTOR_", "TRITON_")


def announce(folder: Path, control_plane: str) -> None:
    """Tells runs in the folder, also those from before, at which host:port the control plane now is."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    supervisor.write_atomically(folder.with_name(_CONTROL_PLANE_FILE), control_plane)


class LocalExecutor:
    """Starts `command` once per attempt below `folder` and observes it through /proc.

    `slots` is how many runs there may be at once on a machine without GPUs.
    """

    def __init__(self, folder: Path, cache_dir: Path, command: Sequence[str], slots: int = 1) -> None:
        self._folder = folder.resolve()
        self._cache_dir = cache_dir.resolve()
        self._command = tuple(command)
        self._slots = slots
        self._inventory: Inventory | None = None
        # Children must be reaped by the process that started them, or they stay as zombies.
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._launching = threading.Lock()

    async def capabilities(self) -> Inventory:
        """The machine's devices, looked up once; raises UnavailableError while the driver does not answer."""
        if self._inventory is None:
            self._inventory = Inventory(await asyncio.to_thread(local_devices.list_devices, self._slots))
        return self._inventory

    async def ensure(self, launch: Launch) -> None:
        """Starts the run unless this attempt has been started before; raises UnavailableError."""
        try:
            await asyncio.to_thread(self._ensure, launch)
        except OSError as error:
            raise UnavailableError("launch_failed", f"The run cannot be started: {error.strerror}.") from error

    async def observe(self, attempt_id: str) -> Observation:
        """What became of the run, from its folder and /proc; GONE when it was never started."""
        return await asyncio.to_thread(self._observe, attempt_id)

    async def stop(self, attempt_id: str, grace_seconds: float) -> None:
        """SIGTERM to all processes of the run, SIGKILL to those left after the grace."""
        await asyncio.to_thread(self._stop, attempt_id, grace_seconds)

    async def list_attempts(self) -> list[str]:
        """Attempt ids that have a folder."""
        return await asyncio.to_thread(self._list_attempts)

    async def forget(self, attempt_id: str) -> None:
        """Kills what is left of the run's processes and removes its folder."""
        await asyncio.to_thread(self._forget, attempt_id)

    async def read_log(self, attempt_id: str, max_bytes: int = 65536) -> str:
        """The end of the run's output, or an empty string."""
        return await asyncio.to_thread(read_tail, self._run_folder(attempt_id) / supervisor.LOG_FILE, max_bytes)

    def _run_folder(self, attempt_id: str) -> Path:
        return self._folder / require_attempt_id(attempt_id)

    def _ensure(self, launch: Launch) -> None:
        with self._launching:
            self._launch(launch)

    def _launch(self, launch: Launch) -> None:
        folder = self._run_folder(launch.attempt_id)
        if (folder / supervisor.IDENTITY_FILE).exists():
            return
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        reach("executor.folder_made")
        supervisor.write_atomically(folder / _TOKEN_FILE, launch.token)
        with supervisor.open_log(folder) as log:
            # Isolated (-I) and without site (-S): the supervisor is standard library only and starts at once.
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, str(folder), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(folder, launch),
                cwd=folder,
                start_new_session=True,
            )
        self._children[launch.attempt_id] = child
        reach("executor.process_started")
        deadline = time.monotonic() + _LAUNCH_LIMIT_SECONDS
        while True:
            # Asked first: a run may be recorded and end between the two questions.
            given_up = child.poll() is not None or time.monotonic() > deadline
            if (folder / supervisor.IDENTITY_FILE).exists():
                break
            if given_up:
                raise UnavailableError("launch_failed", f"The run's supervisor did not start; see {folder}/log.")
            time.sleep(_POLL_SECONDS)
        reach("executor.run_recorded")

    def _environment(self, folder: Path, launch: Launch) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in _INHERITED_NAMES or name.startswith(_INHERITED_PREFIXES)
        }
        return {
            **inherited,
            **local_devices.environment(launch.devices),
            **launch.settings,
            "TUNESMITH_ATTEMPT_TOKEN_FILE": str(folder / _TOKEN_FILE),
            "TUNESMITH_CONTROL_PLANE_FILE": str(self._folder.with_name(_CONTROL_PLANE_FILE)),
            "TUNESMITH_CACHE_DIR": str(self._cache_dir),
            "TUNESMITH_WORK_DIR": str(folder / supervisor.WORK_FOLDER),
        }

    def _observe(self, attempt_id: str) -> Observation:
        folder = self._run_folder(attempt_id)
        self._reap(attempt_id)
        try:
            # The session is read before the exit code: a run that ends in between must not look gone.
            session = _Session.read(folder)
            alive = session is not None and session.supervisor_lives()
            exit_code = supervisor.read_exit_code(folder)
            if exit_code is not None:
                return Observation(RunState.EXITED, exit_code)
            if alive or (session is not None and any(session.members())):
                return Observation(RunState.RUNNING)
        except (OSError, ValueError):
            return Observation(RunState.UNREACHABLE)
        return Observation(RunState.GONE)

    def _stop(self, attempt_id: str, grace_seconds: float) -> None:
        session = _Session.read(self._run_folder(attempt_id))
        if session is None:
            return
        deadline = time.monotonic() + grace_seconds
        told: set[int] = set()
        while time.monotonic() < deadline and session.lives():
            told |= session.signal(signal.SIGTERM, except_for=told)
            time.sleep(_POLL_SECONDS)
        session.kill()
        reach("executor.stopped")

    def _list_attempts(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        return sorted(entry.name for entry in self._folder.iterdir() if entry.is_dir())

    def _forget(self, attempt_id: str) -> None:
        folder = self._run_folder(attempt_id)
        session = _Session.read(folder)
        if session is not None:
            session.kill()
        reach("executor.run_killed")
        if attempt_id in self._children:
            # A second supervisor of the run, which ends by itself, may only now get to see that it is the second.
            with suppress(subprocess.TimeoutExpired):
                self._children[attempt_id].wait(_LAUNCH_LIMIT_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        self._reap(attempt_id)

    def _reap(self, attempt_id: str) -> None:
        child = self._children.get(attempt_id)
        if child is not None and child.poll() is not None:
            self._children.pop(attempt_id, None)


@dataclass(frozen=True, slots=True)
class _Session:
    """The processes of one run: a session whose leader is the supervisor."""

    leader: int
    start_time: int

    @classmethod
    def read(cls, folder: Path) -> _Session | None:
        """The session that the folder names; None when none was started in it since the machine booted."""
        try:
            identity = json.loads((folder / supervisor.IDENTITY_FILE).read_text())
            here = supervisor.place(folder)
        except FileNotFoundError:
            return None
        if identity["boot_id"] != supervisor.boot_id():
            return None
        # In a copy of a home, the run is that of the original. Earlier supervisors did not write their place down.
        if identity.get("place", here) != here:
            return None
        return cls(leader=identity["pid"], start_time=identity["start_time"])

    def supervisor_lives(self) -> bool:
        return supervisor.start_time(self.leader) == self.start_time

    def members(self) -> Iterator[int]:
        """Living processes of the run other than the supervisor."""
        # The id of a session is not given to a new process while the session has members. So a process that has
        # the leader's id but another start time says that this session is over and the id is somebody else's.
        leader_started = supervisor.start_time(self.leader)
        if leader_started is not None and leader_started != self.start_time:
            return
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == self.leader:
                continue
            fields = supervisor.stat_fields(int(entry.name))
            if (
                fields
                and fields[0] not in "ZX"
                and int(fields[3]) == self.leader
                and int(fields[19]) >= self.start_time
            ):
                yield int(entry.name)

    def lives(self) -> bool:
        return self.supervisor_lives() or any(self.members())

    def signal(self, number: signal.Signals, *, except_for: Set[int] = frozenset()) -> set[int]:
        """Signals the members and returns them. The supervisor is spared: it has an exit code to write."""
        members = set(self.members()) - except_for
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return members

    def kill(self) -> None:
        """SIGKILL until nothing of the run is left."""
        deadline = time.monotonic() + _KILL_LIMIT_SECONDS
        while time.monotonic() < deadline and self.lives():
            self.signal(signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
