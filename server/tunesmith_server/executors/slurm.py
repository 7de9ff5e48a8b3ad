"""Owns runs as batch jobs of a Slurm cluster: one folder on a shared file system and one job name per attempt.

It must not know fine-tunes or the database, nor need Slurm's accounting: a run leaves its exit code in its folder.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors import supervisor
from tunesmith_server.executors.base import Inventory, Launch, Observation, RunState, require_attempt_id
from tunesmith_server.tail import read_tail

_JOB_PREFIX = "tunesmith-"
_TOKEN_FILE = "token"  # noqa: S105 (a file name)
_SCRIPT_FILE = "job.sh"
_SUPERVISOR_FILE = "supervisor.py"
_COMMAND_LIMIT_SECONDS = 60.0
_KILL_LIMIT_SECONDS = 120.0
_POLL_SECONDS = 0.5
_COMPLETED = "COMPLETED"
_OUT_OF_MEMORY = "OUT_OF_MEMORY"
_WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
_ENDED = frozenset(
    {
        _COMPLETED,
        _OUT_OF_MEMORY,
        "BOOT_FAIL",
        "CANCELLED",
        "DEADLINE",
        "FAILED",
        "LAUNCH_FAILED",
        "NODE_FAIL",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
_TERMINATED = 143
"""What a run ends with that Slurm ended and that has no exit code: cancelled while it waited, node lost."""


@dataclass(frozen=True, slots=True)
class SlurmSettings:
    """How runs are submitted."""

    slots: int
    """Runs with devices that may be in Slurm's queue or running at once."""
    gres: str = ""
    """The generic resource that one device is (`gpu`, `gpu:h200`); empty: runs ask for none."""
    options: Sequence[str] = ()
    """Further options of sbatch: partition, time limit, memory, account."""


class SlurmExecutor:
    """Submits `command` once per attempt; all nodes have its interpreter, `folder` and `cache_dir` at the same path."""

    def __init__(self, folder: Path, cache_dir: Path, command: Sequence[str], settings: SlurmSettings) -> None:
        self._folder = folder.resolve()
        self._cache_dir = cache_dir.resolve()
        self._command = tuple(command)
        self._settings = settings
        self._launching = threading.Lock()

    async def capabilities(self) -> Inventory:
        """The slots that the operator set: which devices of which node a run gets is Slurm's to say."""
        return Inventory(tuple(f"slot-{number}" for number in range(self._settings.slots)))

    async def ensure(self, launch: Launch) -> None:
        """Submits the run unless it was submitted before; raises UnavailableError."""
        try:
            await asyncio.to_thread(self._ensure, launch)
        except OSError as error:
            raise UnavailableError("launch_failed", f"The run cannot be submitted: {error.strerror}.") from error

    async def observe(self, attempt_id: str) -> Observation:
        """What became of the run, from its folder and Slurm's queue."""
        return await asyncio.to_thread(self._observe, attempt_id)

    async def stop(self, attempt_id: str, grace_seconds: float) -> None:
        """Takes the run out of the queue, or SIGTERM to all its processes and SIGKILL after the grace."""
        await asyncio.to_thread(self._stop, attempt_id, grace_seconds)

    async def list_attempts(self) -> list[str]:
        """Attempt ids that have a folder: the queue alone would also tell runs of other installations."""
        return await asyncio.to_thread(self._list_attempts)

    async def forget(self, attempt_id: str) -> None:
        """Kills what is left of the run and removes its folder; raises UnavailableError while it may still run."""
        await asyncio.to_thread(self._forget, attempt_id)

    async def read_log(self, attempt_id: str, max_bytes: int = 65536) -> str:
        """The end of the run's output, or an empty string."""
        return await asyncio.to_thread(read_tail, self._run_folder(attempt_id) / supervisor.LOG_FILE, max_bytes)

    def _run_folder(self, attempt_id: str) -> Path:
        return self._folder / require_attempt_id(attempt_id)

    def _ensure(self, launch: Launch) -> None:
        folder = self._run_folder(launch.attempt_id)
        with self._launching:
            if (folder / supervisor.IDENTITY_FILE).exists() or _jobs(folder):
                return
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            supervisor.write_atomically(folder / _TOKEN_FILE, launch.token)
            # A copy, so that nodes need nothing of the control plane; it also lets one job of a name run, if two came.
            supervisor.write_atomically(folder / _SUPERVISOR_FILE, Path(supervisor.__file__).read_text())
            supervisor.write_atomically(folder / _SCRIPT_FILE, self._script(folder, launch))
            _slurm("sbatch", *self._options(folder, launch), str(folder / _SCRIPT_FILE))

    def _options(self, folder: Path, launch: Launch) -> Iterator[str]:
        """The operator's options first: of an option given twice, sbatch takes the last."""
        yield from self._settings.options
        if self._settings.gres and launch.devices:
            yield f"--gres={self._settings.gres}:{len(launch.devices)}"
        yield f"--job-name={_JOB_PREFIX}{launch.attempt_id}"
        yield f"--output={folder / supervisor.LOG_FILE}"
        yield f"--chdir={folder}"
        yield from ("--open-mode=append", "--nodes=1", "--ntasks=1", "--export=NONE", "--no-requeue")

    def _script(self, folder: Path, launch: Launch) -> str:
        environment = {
            **launch.settings,
            "TUNESMITH_ATTEMPT_TOKEN_FILE": str(folder / _TOKEN_FILE),
            "TUNESMITH_CACHE_DIR": str(self._cache_dir),
            "TUNESMITH_WORK_DIR": str(folder / supervisor.WORK_FOLDER),
        }
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
        command = [self._command[0], "-I", "-S", str(folder / _SUPERVISOR_FILE), str(folder), *self._command]
        return f"#!/bin/sh\n{exports}exec {shlex.join(command)}\n"

    def _observe(self, attempt_id: str) -> Observation:
        folder = self._run_folder(attempt_id)
        try:
            exit_code = supervisor.read_exit_code(folder)
            if exit_code is not None:
                return Observation(RunState.EXITED, exit_code)
            jobs = _jobs(folder)
            if any(job.runs for job in jobs):
                return Observation(RunState.RUNNING)
            if any(job.waits for job in jobs):
                return Observation(RunState.PENDING)
            return self._observe_ended(folder, jobs)
        except (OSError, ValueError, UnavailableError):
            return Observation(RunState.UNREACHABLE)

    def _observe_ended(self, folder: Path, jobs: Sequence[_Job]) -> Observation:
        exit_code = supervisor.read_exit_code(folder)  # once more: it may have ended between the two questions
        if exit_code is not None:
            return Observation(RunState.EXITED, exit_code)
        if not jobs or not folder.exists():
            return Observation(RunState.GONE)
        broken = [job for job in jobs if job.state != _COMPLETED]
        if not broken:
            # The supervisor writes the exit code before it completes: the shared file system does not show it yet.
            return Observation(RunState.RUNNING)
        return Observation(RunState.EXITED, _exit_code(broken[0]))

    def _stop(self, attempt_id: str, grace_seconds: float) -> None:
        folder = self._run_folder(attempt_id)
        deadline = time.monotonic() + grace_seconds
        jobs = _living(folder)
        _cancel([job for job in jobs if job.waits])
        _cancel([job for job in jobs if job.runs], "--full", "--signal=TERM")
        while _living(folder) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        _kill(folder)

    def _list_attempts(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        return sorted(entry.name for entry in self._folder.iterdir() if entry.is_dir())

    def _forget(self, attempt_id: str) -> None:
        folder = self._run_folder(attempt_id)
        _kill(folder)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Job:
    """A job in Slurm's memory, which keeps ended ones for some minutes."""

    number: str
    state: str

    @property
    def waits(self) -> bool:
        return self.state in _WAITING

    @property
    def runs(self) -> bool:
        """Also while it completes or is suspended: something of it may exist."""
        return not self.waits and self.state not in _ENDED


def _jobs(folder: Path) -> list[_Job]:
    """This user's jobs of the run folder, oldest first; raises UnavailableError when Slurm does not say.

    The name alone could be that of a job which someone else, or another installation, has submitted.
    """
    name = f"--name={_JOB_PREFIX}{folder.name}"
    answer = _slurm(
        "squeue", "--me", "--states=all", "--sort=i", "--noheader", "--Format=JobID:|,State:|,WorkDir:|", name
    )
    rows = [[cell.strip() for cell in line.split("|", 2)] for line in answer.splitlines() if line.count("|") >= 3]
    return [_Job(number, state) for number, state, work in rows if work == f"{folder}|"]


def _living(folder: Path) -> list[_Job]:
    return [job for job in _jobs(folder) if job.waits or job.runs]


def _exit_code(job: _Job) -> int:
    """As a shell says it, for a job whose supervisor could not write it."""
    if job.state == _OUT_OF_MEMORY:
        return supervisor.OUT_OF_MEMORY
    found = re.search(r"\bExitCode=(\d+):(\d+)", _slurm("scontrol", "--oneliner", "show", "job", job.number))
    code, number = (int(part) for part in found.groups()) if found else (0, 0)
    return 128 + number if number else code or _TERMINATED


def _kill(folder: Path) -> None:
    """SIGKILL until nothing of the attempt lives; raises UnavailableError when that takes too long."""
    deadline = time.monotonic() + _KILL_LIMIT_SECONDS
    while jobs := _living(folder):
        if time.monotonic() > deadline:
            raise UnavailableError("run_not_ended", f"Slurm has not ended job {jobs[0].number} yet.")
        _cancel([job for job in jobs if job.waits])
        _cancel([job for job in jobs if job.runs], "--full", "--signal=KILL")
        time.sleep(_POLL_SECONDS)


def _cancel(jobs: Sequence[_Job], *how: str) -> None:
    """An error is no news: a job may have ended meanwhile, and the caller looks again whether it has."""
    if jobs:
        _run("scancel", *how, *(job.number for job in jobs))


def _slurm(program: str, *arguments: str) -> str:
    """What the command prints; raises UnavailableError with its complaint."""
    result = _run(program, *arguments)
    if result.returncode != 0:
        raise UnavailableError("slurm_unavailable", f"{program} failed: {result.stderr.strip()[:500]}")
    return result.stdout


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_LIMIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError("slurm_unavailable", f"{program} cannot be run or does not answer.") from error
