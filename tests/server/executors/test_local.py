"""Real processes: runs are found again after the death of whoever started them, and leave their exit code."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.executors.contract import (
    ATTEMPT,
    WAIT_FOR_PERMISSION,
    ExecutorContract,
    launch,
    until_ended,
    until_log,
    visible_arguments,
)
from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors import supervisor
from tunesmith_server.executors.base import Inventory, Observation, RunState
from tunesmith_server.executors.local import LocalExecutor, announce

PYTHON = (sys.executable, "-I", "-S", "-c")
SUPERVISE_WITH_COUNTERS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import supervisor
supervisor._COUNTERS = Path(sys.argv.pop(1))
supervisor.main(sys.argv[1:])
"""
LAUNCH_AND_WAIT = """
import asyncio, sys, time
from pathlib import Path
from tunesmith_server.executors.base import Launch
from tunesmith_server.executors.local import LocalExecutor
folder, script = Path(sys.argv[1]), sys.argv[2]
executor = LocalExecutor(folder, folder / "cache", [sys.executable, "-I", "-S", "-c", script])
asyncio.run(executor.ensure(Launch("attempt-1", "token", "127.0.0.1:1")))
print("launched", flush=True)
time.sleep(600)
"""


class LocalBackend:
    """A folder of runs on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[LocalExecutor] = []
        self._identity = ""

    def executor(self, script: str = WAIT_FOR_PERMISSION) -> LocalExecutor:
        """A new object over the same folder."""
        self.made.append(LocalExecutor(self.folder / "runs", self.folder / "cache", (*PYTHON, script)))
        return self.made[-1]

    async def let_exit(self, attempt_id: str, code: int) -> None:
        """Writes what the script looks for."""
        work = self.folder / "runs" / attempt_id / supervisor.WORK_FOLDER
        (work / "permission").write_text(str(code))
        (work / "permission").rename(work / "go")

    async def publicly_visible(self, attempt_id: str) -> str:
        """The arguments of every process."""
        return visible_arguments()

    async def go_away(self) -> None:
        """Makes unreadable what identifies the run."""
        self._identity = self._identity_file.read_text()
        self._identity_file.write_text("not json")

    async def come_back(self) -> None:
        """Undoes it."""
        self._identity_file.write_text(self._identity)

    @property
    def _identity_file(self) -> Path:
        return self.folder / "runs" / ATTEMPT / supervisor.IDENTITY_FILE


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LocalBackend]:
    """A folder that leaves no process behind."""
    backend = LocalBackend(tmp_path)
    yield backend
    for executor in backend.made:  # each reaps what it has started
        await executor.forget(ATTEMPT)


class TestLocalExecutor(ExecutorContract):
    """The contract, with processes of this machine."""


async def test_a_run_outlives_kill_9_of_the_process_that_launched_it(backend: LocalBackend, tmp_path: Path) -> None:
    launcher = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LAUNCH_AND_WAIT, str(tmp_path / "runs"), WAIT_FOR_PERMISSION, stdout=subprocess.PIPE
    )
    assert launcher.stdout is not None
    assert await launcher.stdout.readline() == b"launched\n"
    launcher.kill()
    await launcher.wait()

    executor = backend.executor()
    await until_log(executor, "waiting")
    assert await executor.observe(ATTEMPT) == Observation(RunState.RUNNING)
    await backend.let_exit(ATTEMPT, 0)

    assert await until_ended(executor) == Observation(RunState.EXITED, 0)


async def test_a_run_is_seen_while_its_supervisor_is_dead_and_gone_when_it_ends(
    backend: LocalBackend, tmp_path: Path
) -> None:
    executor = backend.executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")

    os.kill(supervisor_pid(tmp_path), signal.SIGKILL)

    assert await executor.observe(ATTEMPT) == Observation(RunState.RUNNING)
    await backend.let_exit(ATTEMPT, 0)
    assert await until_ended(executor) == Observation(RunState.GONE)


async def test_stop_reaches_a_run_whose_supervisor_is_dead(backend: LocalBackend, tmp_path: Path) -> None:
    executor = backend.executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")
    os.kill(supervisor_pid(tmp_path), signal.SIGKILL)

    await executor.stop(ATTEMPT, grace_seconds=10)

    assert await executor.observe(ATTEMPT) == Observation(RunState.GONE)


async def test_a_command_that_cannot_start_is_an_exit_with_127(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path / "runs", tmp_path / "cache", ["/nonexistent/python", "-m", "x"])
    await executor.ensure(launch())
    assert await until_ended(executor) == Observation(RunState.EXITED, supervisor.COMMAND_NOT_STARTED)
    assert "cannot start /nonexistent/python" in await executor.read_log(ATTEMPT)
    await executor.forget(ATTEMPT)


async def test_the_run_inherits_how_to_compute_but_not_the_devices_of_others(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    executor = backend.executor("import json, os; print(json.dumps(dict(os.environ)))")
    await executor.ensure(launch("GPU-bbb"))
    assert await until_ended(executor) == Observation(RunState.EXITED, 0)

    environment = json.loads(await executor.read_log(ATTEMPT))

    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-bbb", "not those of the run beside it"
    assert Path(environment["TUNESMITH_WORK_DIR"]).is_relative_to(tmp_path)


async def test_processes_of_another_boot_or_with_a_reused_id_are_not_taken_for_the_run(
    backend: LocalBackend, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / ATTEMPT
    folder.mkdir(parents=True)
    ours = {"pid": os.getpid(), "start_time": supervisor.start_time(os.getpid())}
    for wrong in ({"boot_id": "another"}, {"boot_id": supervisor.boot_id(), "start_time": 1}):
        (folder / supervisor.IDENTITY_FILE).write_text(json.dumps(ours | wrong))
        assert await backend.executor().observe(ATTEMPT) == Observation(RunState.GONE)
        await backend.executor().stop(ATTEMPT, 0)


async def test_a_copy_of_the_folder_has_no_hold_on_the_run_and_a_moved_one_keeps_it(
    backend: LocalBackend, tmp_path: Path
) -> None:
    executor = backend.executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")
    shutil.copytree(tmp_path / "runs", tmp_path / "copied" / "runs", symlinks=True)
    copied = LocalExecutor(tmp_path / "copied" / "runs", tmp_path / "cache", PYTHON)

    assert await copied.observe(ATTEMPT) == Observation(RunState.GONE)
    await copied.stop(ATTEMPT, 0)
    await copied.forget(ATTEMPT)
    assert await executor.observe(ATTEMPT) == Observation(RunState.RUNNING)

    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = LocalExecutor(tmp_path / "moved", tmp_path / "cache", PYTHON)
    assert await moved.observe(ATTEMPT) == Observation(RunState.RUNNING)
    record = tmp_path / "moved" / ATTEMPT / supervisor.IDENTITY_FILE
    earlier = {name: value for name, value in json.loads(record.read_text()).items() if name != "place"}
    record.write_text(json.dumps(earlier))
    assert await moved.observe(ATTEMPT) == Observation(RunState.RUNNING), "as earlier supervisors wrote it"
    (tmp_path / "moved").rename(tmp_path / "runs")


async def test_a_run_can_look_up_where_the_control_plane_is_now(backend: LocalBackend, tmp_path: Path) -> None:
    executor = backend.executor("import os; print(open(os.environ['TUNESMITH_CONTROL_PLANE_FILE']).read(), flush=True)")
    announce(tmp_path / "runs", "127.0.0.1:1")
    announce(tmp_path / "runs", "127.0.0.1:2")
    await executor.ensure(launch())

    await until_log(executor, "127.0.0.1:2")
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == [ATTEMPT]


async def test_a_machine_without_gpus_offers_its_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    executor = LocalExecutor(tmp_path / "runs", tmp_path / "cache", PYTHON, slots=2)
    assert await executor.capabilities() == Inventory(("slot-0", "slot-1"))


async def test_a_launch_that_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    executor = LocalExecutor(tmp_path / "runs", tmp_path / "cache", PYTHON)
    with pytest.raises(UnavailableError):
        await executor.ensure(launch())


def supervisor_pid(folder: Path) -> int:
    """Process id of the supervisor of the attempt."""
    identity = json.loads((folder / "runs" / ATTEMPT / supervisor.IDENTITY_FILE).read_text())
    return int(identity["pid"])


@pytest.mark.parametrize(("kills", "code"), [("0", 137), ("1", 71)])
def test_a_kill_that_the_kernel_counts_as_for_memory_is_told_from_others(tmp_path: Path, kills: str, code: int) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 5\noom_kill 0\n")
    killed = f"echo oom_kill {kills} > {counters}; kill -9 $$"
    folder = Path(supervisor.__file__).parent
    run = [str(tmp_path), "sh", "-c", killed]
    subprocess.run([*PYTHON, SUPERVISE_WITH_COUNTERS, str(folder), str(counters), *run], check=True)

    assert (tmp_path / supervisor.EXIT_CODE_FILE).read_text() == str(code)
    assert ("out of memory" in (tmp_path / supervisor.LOG_FILE).read_text()) == (code == 71)


def test_where_the_kernel_tells_nothing_no_kill_was_for_memory(tmp_path: Path) -> None:
    assert supervisor.kills_for_memory(tmp_path / "vmstat") == 0
