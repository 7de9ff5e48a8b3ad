"""A real Slurm on this machine: runs are jobs that outlive the control plane and Slurm's own controller."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.server.executors.contract import (
    ATTEMPT,
    IGNORE_TERM,
    WAIT_FOR_PERMISSION,
    ExecutorContract,
    launch,
    until,
    until_ended,
    until_log,
    until_true,
    visible_arguments,
)
from tests.support.slurm_cluster import SlurmCluster
from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors import supervisor
from tunesmith_server.executors.base import Inventory, Observation, RunState
from tunesmith_server.executors.slurm import SlurmExecutor, SlurmSettings

pytestmark = pytest.mark.cluster


class SlurmBackend:
    """A folder of runs on a cluster."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder

    def executor(self, script: str = WAIT_FOR_PERMISSION, *options: str, gres: str = "") -> SlurmExecutor:
        """A new object over the same folder and cluster."""
        settings = SlurmSettings(2, gres, options)
        command = (sys.executable, "-I", "-S", "-c", script)
        return SlurmExecutor(self.folder / "runs", self.folder / "cache", command, settings)

    async def let_exit(self, attempt_id: str, code: int) -> None:
        """Writes what the script looks for."""
        work = self.folder / "runs" / attempt_id / supervisor.WORK_FOLDER
        (work / "permission").write_text(str(code))
        (work / "permission").rename(work / "go")

    async def publicly_visible(self, attempt_id: str) -> str:
        """Arguments of processes, and the job with its script as Slurm shows it to its administrators."""
        name = f"--name=tunesmith-{attempt_id}"
        job = self.cluster.ask("squeue", "--noheader", "--format=%i", name)
        shown = self.cluster.ask("scontrol", "show", "job", "-dd", job)
        return visible_arguments() + shown + self.cluster.ask("scontrol", "write", "batch_script", job, "-")

    async def go_away(self) -> None:
        """Ends Slurm's controller."""
        self.cluster.stop_controller()

    async def come_back(self) -> None:
        """Starts it with the state that it left."""
        self.cluster.start_controller()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """One cluster for all tests of this file."""
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
async def backend(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SlurmBackend]:
    """A folder of its own; every test's attempt has the same id, so none may find the job of another."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.configuration))
    backend = SlurmBackend(cluster, tmp_path)
    yield backend
    await backend.executor().forget(ATTEMPT)


class TestSlurmExecutor(ExecutorContract):
    """The contract, with batch jobs."""


async def test_two_jobs_of_one_attempt_give_one_run(backend: SlurmBackend) -> None:
    executor = backend.executor(IGNORE_TERM)
    await executor.ensure(launch())
    await until_log(executor, "deaf")
    folder = backend.folder / "runs" / ATTEMPT

    # What a control plane does that did not see the first one's job yet.
    second = await sbatch(backend, f"--job-name=tunesmith-{ATTEMPT}", f"--chdir={folder}", str(folder / "job.sh"))
    await until_true(lambda: has_completed(backend, second))

    assert await executor.observe(ATTEMPT) == Observation(RunState.RUNNING)
    assert (await executor.read_log(ATTEMPT)).count("deaf") == 1
    await executor.stop(ATTEMPT, grace_seconds=0.1)
    assert await executor.observe(ATTEMPT) == Observation(RunState.EXITED, 137), "not what the idle job ended with"


async def test_a_run_in_the_queue_is_pending_and_can_be_taken_out(backend: SlurmBackend) -> None:
    executor = backend.executor(WAIT_FOR_PERMISSION, "--begin=now+1hour")
    await executor.ensure(launch())
    assert await executor.observe(ATTEMPT) == Observation(RunState.PENDING)

    await executor.stop(ATTEMPT, grace_seconds=60)

    assert await executor.observe(ATTEMPT) == Observation(RunState.EXITED, 143)
    assert await executor.read_log(ATTEMPT) == ""


async def test_a_run_that_slurm_ends_at_its_time_limit_hears_sigterm(backend: SlurmBackend) -> None:
    executor = backend.executor()
    await executor.ensure(launch())
    await until_log(executor, "waiting")

    backend.cluster.ask("scancel", f"--name=tunesmith-{ATTEMPT}")

    assert await until_ended(executor) == Observation(RunState.EXITED, 143)


async def test_an_interpreter_that_the_node_lacks_is_an_exit_with_127(backend: SlurmBackend) -> None:
    executor = SlurmExecutor(backend.folder / "runs", backend.folder / "cache", ["/none/python"], SlurmSettings(1))
    await executor.ensure(launch())
    assert await until_ended(executor) == Observation(RunState.EXITED, 127)
    assert "/none/python" in await executor.read_log(ATTEMPT)


async def test_what_slurm_refuses_says_why_and_can_be_asked_for_again(backend: SlurmBackend) -> None:
    with pytest.raises(UnavailableError, match="invalid partition"):
        await backend.executor(WAIT_FOR_PERMISSION, "--partition=none").ensure(launch())
    assert await backend.executor().observe(ATTEMPT) == Observation(RunState.GONE)

    await backend.executor().ensure(launch())

    assert (await until(backend.executor().observe, RunState.RUNNING)).state is RunState.RUNNING


async def test_devices_are_asked_for_as_the_operators_generic_resource(backend: SlurmBackend) -> None:
    assert await backend.executor().capabilities() == Inventory(("slot-0", "slot-1"))
    with pytest.raises(UnavailableError, match="generic resource"):
        await backend.executor(gres="gpu").ensure(launch("slot-0"))

    await backend.executor(gres="gpu").ensure(launch())

    await until_log(backend.executor(), "waiting")


async def test_without_a_controller_nothing_is_launched_stopped_or_forgotten(backend: SlurmBackend) -> None:
    executor = backend.executor()
    await backend.go_away()
    for call in (executor.ensure(launch()), executor.stop(ATTEMPT, 0), executor.forget(ATTEMPT)):
        with pytest.raises(UnavailableError, match="failed"):
            await call
    await backend.come_back()


async def sbatch(backend: SlurmBackend, *arguments: str) -> str:
    """Submits a job past the executor; returns its number."""
    options = ("--parsable", "--export=NONE", f"--output={backend.folder}/second")
    return await asyncio.to_thread(backend.cluster.ask, "sbatch", *options, *arguments)


async def has_completed(backend: SlurmBackend, job: str) -> bool:
    """Whether the job has ended well."""
    return backend.cluster.ask("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T") == "COMPLETED"
