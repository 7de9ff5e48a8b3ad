"""Real processes: runs are found again after the death of whoever started them, and leave their exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors import local_supervisor
from tunesmith_server.executors.base import Inventory, Launch, Observation, RunState
from tunesmith_server.executors.local import LocalExecutor

PYTHON = (sys.executable, "-I", "-S", "-c")
WAIT_FOR_PERMISSION = """
import os, sys, time
print("waiting", flush=True)
while not os.path.exists("go"):
    time.sleep(0.02)
sys.exit(int(open("go").read()))
"""
IGNORE_TERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)
SUPERVISE_WITH_COUNTERS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import local_supervisor
local_supervisor._COUNTERS = Path(sys.argv.pop(1))
local_supervisor.main(sys.argv[1:])
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

MakeExecutor = Callable[..., LocalExecutor]


@pytest.fixture
async def make_executor(tmp_path: Path) -> AsyncIterator[MakeExecutor]:
    """Makes executors over one folder and leaves no process behind."""

    made: list[LocalExecutor] = []

    def make(script: str = WAIT_FOR_PERMISSION) -> LocalExecutor:
        made.append(LocalExecutor(tmp_path / "runs", tmp_path / "cache", (*PYTHON, script)))
        return made[-1]

    yield make
    for executor in made:
        await executor.forget("attempt-1")


async def test_a_run_is_started_once_and_its_exit_code_is_kept(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor()
    await asyncio.gather(*(executor.ensure(launch()) for _ in range(3)))
    await until_log(executor, "waiting")
    await executor.ensure(launch())
    assert await executor.observe("attempt-1") == Observation(RunState.RUNNING)
    assert await executor.list_attempts() == ["attempt-1"]

    allow_exit(tmp_path, 65)

    assert await until_ended(executor) == Observation(RunState.EXITED, 65)
    await executor.ensure(launch())
    assert await executor.observe("attempt-1") == Observation(RunState.EXITED, 65)
    assert (await executor.read_log("attempt-1")).count("waiting") == 1
    await executor.forget("attempt-1")
    assert await executor.list_attempts() == []
    assert await executor.observe("attempt-1") == Observation(RunState.GONE)


async def test_a_run_outlives_kill_9_of_the_process_that_launched_it(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    launcher = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LAUNCH_AND_WAIT, str(tmp_path / "runs"), WAIT_FOR_PERMISSION, stdout=subprocess.PIPE
    )
    assert launcher.stdout is not None
    assert await launcher.stdout.readline() == b"launched\n"
    launcher.kill()
    await launcher.wait()

    executor = make_executor()
    await until_log(executor, "waiting")
    assert await executor.observe("attempt-1") == Observation(RunState.RUNNING)
    allow_exit(tmp_path, 0)

    assert await until_ended(executor) == Observation(RunState.EXITED, 0)


async def test_a_run_is_seen_while_its_supervisor_is_dead_and_gone_when_it_ends(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    executor = make_executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")

    os.kill(supervisor_pid(tmp_path), signal.SIGKILL)

    assert await executor.observe("attempt-1") == Observation(RunState.RUNNING)
    allow_exit(tmp_path, 0)
    assert await until_ended(executor) == Observation(RunState.GONE)


async def test_stop_reaches_a_run_whose_supervisor_is_dead(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")
    os.kill(supervisor_pid(tmp_path), signal.SIGKILL)

    await executor.stop("attempt-1", grace_seconds=10)

    assert await executor.observe("attempt-1") == Observation(RunState.GONE)


@pytest.mark.parametrize(("script", "grace", "code"), [(WAIT_FOR_PERMISSION, 10.0, 143), (IGNORE_TERM, 0.1, 137)])
async def test_stop_asks_first_and_kills_after_the_grace(
    make_executor: MakeExecutor, script: str, grace: float, code: int
) -> None:
    executor = make_executor(script)
    await executor.ensure(launch())
    await until(lambda: executor.read_log("attempt-1"))

    await executor.stop("attempt-1", grace)

    assert await executor.observe("attempt-1") == Observation(RunState.EXITED, code)
    await executor.stop("attempt-1", grace)
    await executor.stop("attempt-never-started", grace)


async def test_a_command_that_cannot_start_is_an_exit_with_127(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path / "runs", tmp_path / "cache", ["/nonexistent/python", "-m", "x"])
    await executor.ensure(launch())
    assert await until_ended(executor) == Observation(RunState.EXITED, local_supervisor.COMMAND_NOT_STARTED)
    assert "cannot start /nonexistent/python" in await executor.read_log("attempt-1")
    await executor.forget("attempt-1")


async def test_the_run_gets_a_clean_environment_and_its_token_in_a_private_file(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "TUNESMITH_DATABASE_URL", "TUNESMITH_SECRET_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    executor = make_executor("import json, os; print(json.dumps(dict(os.environ)))")
    await executor.ensure(Launch("attempt-1", "token", "127.0.0.1:1", devices=("GPU-bbb",)))
    assert await until_ended(executor) == Observation(RunState.EXITED, 0)

    environment = json.loads(await executor.read_log("attempt-1"))

    assert "secret" not in environment.values()
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-bbb", "not those of the run beside it"
    assert environment["TUNESMITH_CONTROL_PLANE"] == "127.0.0.1:1"
    assert read_private(environment["TUNESMITH_ATTEMPT_TOKEN_FILE"]) == "token"
    assert Path(environment["TUNESMITH_WORK_DIR"]).is_relative_to(tmp_path)


async def test_processes_of_another_boot_or_with_a_reused_id_are_not_taken_for_the_run(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "attempt-1"
    folder.mkdir(parents=True)
    ours = {"pid": os.getpid(), "start_time": local_supervisor.start_time(os.getpid())}
    for wrong in ({"boot_id": "another"}, {"boot_id": local_supervisor.boot_id(), "start_time": 1}):
        (folder / local_supervisor.IDENTITY_FILE).write_text(json.dumps(ours | wrong))
        assert await make_executor().observe("attempt-1") == Observation(RunState.GONE)
        await make_executor().stop("attempt-1", 0)


async def test_a_folder_that_cannot_be_read_is_unreachable_not_gone(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "attempt-1"
    folder.mkdir(parents=True)
    (folder / local_supervisor.IDENTITY_FILE).write_text("not json")
    assert await make_executor().observe("attempt-1") == Observation(RunState.UNREACHABLE)
    (folder / local_supervisor.IDENTITY_FILE).unlink()


async def test_a_machine_without_gpus_offers_its_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    executor = LocalExecutor(tmp_path / "runs", tmp_path / "cache", PYTHON, slots=2)
    assert await executor.capabilities() == Inventory(("slot-0", "slot-1"))


async def test_a_launch_that_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    executor = LocalExecutor(tmp_path / "runs", tmp_path / "cache", PYTHON)
    with pytest.raises(UnavailableError):
        await executor.ensure(launch())


def launch() -> Launch:
    """One attempt."""
    return Launch("attempt-1", "token", "127.0.0.1:1")


def read_private(path: str) -> str:
    """Content of a file that only its owner may read."""
    assert Path(path).stat().st_mode & 0o777 == 0o600
    return Path(path).read_text()


def allow_exit(folder: Path, code: int) -> None:
    """Lets the waiting run exit with `code`."""
    work = folder / "runs" / "attempt-1" / local_supervisor.WORK_FOLDER
    (work / "permission").write_text(str(code))
    (work / "permission").rename(work / "go")


def supervisor_pid(folder: Path) -> int:
    """Process id of the supervisor of the attempt."""
    identity = json.loads((folder / "runs" / "attempt-1" / local_supervisor.IDENTITY_FILE).read_text())
    return int(identity["pid"])


async def until_log(executor: LocalExecutor, text: str) -> None:
    """Waits until the run has printed `text`."""

    async def printed() -> bool:
        return text in await executor.read_log("attempt-1")

    await until(printed)


async def until_ended(executor: LocalExecutor) -> Observation:
    """Waits until the run no longer runs."""

    async def ended() -> bool:
        return (await executor.observe("attempt-1")).state is not RunState.RUNNING

    await until(ended)
    return await executor.observe("attempt-1")


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Waits for a condition, at most 20 seconds."""
    deadline = time.monotonic() + 20
    while not await condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("kills", "code"), [("0", 137), ("1", 71)])
def test_a_kill_that_the_kernel_counts_as_for_memory_is_told_from_others(tmp_path: Path, kills: str, code: int) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 5\noom_kill 0\n")
    killed = f"echo oom_kill {kills} > {counters}; kill -9 $$"
    folder = Path(local_supervisor.__file__).parent
    run = [str(tmp_path), "sh", "-c", killed]
    subprocess.run([*PYTHON, SUPERVISE_WITH_COUNTERS, str(folder), str(counters), *run], check=True)

    assert (tmp_path / local_supervisor.EXIT_CODE_FILE).read_text() == str(code)
    assert ("out of memory" in (tmp_path / local_supervisor.LOG_FILE).read_text()) == (code == 71)


def test_where_the_kernel_tells_nothing_no_kill_was_for_memory(tmp_path: Path) -> None:
    assert local_supervisor.kills_for_memory(tmp_path / "vmstat") == 0
