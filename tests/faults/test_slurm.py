"""Slurm runs the trainers: deaths of control plane, Slurm's controller and run on the way of a job lose nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.faults.toy_platform import ToyPlatform
from tests.support.live_server import wait_until
from tests.support.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.cluster

HELD = 4
"""The step before which runs wait; a checkpoint was made after the second."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Real daemons."""
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, cluster: SlurmCluster) -> Iterator[ToyPlatform]:
    """A control plane whose runs are batch jobs."""
    environment = {"SLURM_CONF": str(cluster.configuration)}
    platform = ToyPlatform(tmp_path_factory.mktemp("platform"), environment, executor="slurm")
    platform.start()
    yield platform
    platform.close()


def test_a_job_survives_what_can_die(platform: ToyPlatform, cluster: SlurmCluster) -> None:
    with platform.held(HELD):
        job_id = platform.create("job")
        platform.wait_for(job_id, "Checkpoint created at step 2")
        assert queue(cluster), "the run is no job of Slurm's"

        platform.server.kill()
        cluster.stop_controller()
        platform.start()
        cluster.start_controller()
        os.kill(int(platform.controls.notes(job_id)[0].split()[2]), signal.SIGKILL)
        wait_until(lambda: len(platform.controls.notes(job_id)) == 2, 60, "the run that died was not replaced")
    platform.settle()

    assert platform.server.job(job_id)["status"] == "succeeded"
    assert [line.split(" from ")[1] for line in platform.controls.notes(job_id)] == ["0", "2"]
    platform.check()


def test_a_cancelled_job_leaves_the_queue(platform: ToyPlatform, cluster: SlurmCluster) -> None:
    with platform.held(HELD):
        job_id = platform.create("cancelled")
        platform.wait_for(job_id, "Checkpoint created at step 2")
        platform.steer(job_id, "cancel")
        wait_until(lambda: not queue(cluster), 60, "the run of a cancelled job is still in the queue")
    platform.settle()

    assert platform.server.job(job_id)["status"] == "cancelled"
    platform.check()


def queue(cluster: SlurmCluster) -> list[str]:
    """Names of the jobs that wait or run."""
    return cluster.ask("squeue", "--noheader", "--format=%j").split()
