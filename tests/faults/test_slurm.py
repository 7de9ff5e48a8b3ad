"""Slurm runs the trainers: deaths of control plane, Slurm's controller and run on the way of a job lose nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.toy_platform import ToyPlatform
from tests.support.code_names import rows
from tests.support.live_server import LiveServer, wait_until
from tests.support.slurm_cluster import SlurmCluster
from tunesmith import Tunesmith

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

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


def test_the_real_trainer_is_a_job_of_slurm(tmp_path: Path, cluster: SlurmCluster) -> None:
    environment = {"TUNESMITH_EXECUTOR": "slurm", "SLURM_CONF": str(cluster.configuration)}
    (tmp_path / "rows.jsonl").write_bytes(rows(12))
    with (
        LiveServer(tmp_path / "home", environment=environment) as server,
        Tunesmith(base_url=server.url, api_key=server.api_key) as client,
    ):
        job = client.fine_tunes.create(
            model="smollm2-135m-instruct", training_file=str(tmp_path / "rows.jsonl"), n_epochs=1, batch_size=4, seed=7
        )
        wait_until(lambda: queue(cluster) != [], 120, "the preflight is no job of Slurm's")
        ended = client.fine_tunes.wait(job.id, timeout=400)

        assert ended.status == "succeeded", ended.error
        steps = [
            event.data["step"] for event in client.fine_tunes.events(job.id) if event.type == "metrics" and event.data
        ]
        assert sorted(steps) == [1, 2, 3]
        files = client.models.download(str(ended.fine_tuned_model), tmp_path / "model")
        assert "adapter_model.safetensors" in {path.name for path in files}


def queue(cluster: SlurmCluster) -> list[str]:
    """Names of the jobs that wait or run."""
    return cluster.ask("squeue", "--noheader", "--format=%j").split()
