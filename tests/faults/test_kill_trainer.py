"""kill -9 and SIGSTOP of runs: work goes on from the last checkpoint, and a run that was given up can write nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.toy_platform import ToyPlatform
from tests.support import fake_trainer
from tests.support.artifacts import adapter_files
from tests.support.fake_trainer import STEPS, STEPS_PER_PASS, Controls
from tests.support.live_server import wait_until

FENCED = 75


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyPlatform]:
    """A running platform."""
    made = ToyPlatform(tmp_path_factory.mktemp("trainer"), unreachable_limit_seconds="2")
    made.start()
    yield made
    made.close()


def run_of(platform: ToyPlatform, job_id: str) -> int:
    """Process id of the newest training run."""
    return int(platform.controls.notes(job_id)[-1].split()[2])


def progress(platform: ToyPlatform, job_id: str) -> int | None:
    """The step at which the job's run says that it is."""
    shown = platform.server.job(job_id)["progress"]
    return None if shown is None else int(shown["step"])


def finish(platform: ToyPlatform, job_id: str, epochs: int) -> None:
    """The job succeeds with so many training runs, and every promise is kept."""
    platform.settle()
    job = platform.server.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert len(platform.controls.notes(job_id)) == epochs
    platform.check()


def zombie_of(platform: ToyPlatform, job_id: str, folder: Path) -> tuple[subprocess.Popen[bytes], Controls]:
    """A process that is the run of the job as well: the same token, out of reach of the executor."""
    controls = Controls(folder)
    controls.write_adapter(adapter_files())
    controls.hold(3)
    environment = Path(f"/proc/{run_of(platform, job_id)}/environ").read_bytes().split(b"\0")
    settings = dict(line.decode().split("=", 1) for line in environment if b"=" in line)
    process = subprocess.Popen(
        [sys.executable, fake_trainer.__file__],
        env=settings | {"TUNESMITH_CACHE_DIR": str(folder)},
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: bool(controls.notes(job_id)), 30, "the second process did not get its spec")
    return process, controls


@pytest.mark.timeout(240)
def test_a_run_that_sleeps_past_its_lease_can_write_nothing_afterwards(platform: ToyPlatform, tmp_path: Path) -> None:
    with platform.held(3):
        job_id = platform.create("zombie")
        platform.wait_for(job_id, "Checkpoint created at step 2")
        zombie, controls = zombie_of(platform, job_id, tmp_path)
        os.kill(zombie.pid, signal.SIGSTOP)
        os.kill(run_of(platform, job_id), signal.SIGKILL)
        wait_until(lambda: len(platform.controls.notes(job_id)) == 2, 60, "no other run took over")
        wait_until(lambda: progress(platform, job_id) == 2, 60, "the other run did not get to its hold")

        controls.release(3)
        os.kill(zombie.pid, signal.SIGCONT)

        assert zombie.wait(30) == FENCED
        assert (platform.server.job(job_id)["status"], progress(platform, job_id)) == ("running", 2)
    finish(platform, job_id, 2)


@pytest.mark.soak
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, STEPS])
def test_a_run_killed_at_any_step_goes_on_from_its_last_checkpoint(platform: ToyPlatform, step: int) -> None:
    with platform.held(step):
        job_id = platform.create(f"killed-at-{step}")
        wait_until(lambda: bool(platform.controls.notes(job_id)), 60, "the run did not start")
        if step > 1:
            saved = (step - 1) % STEPS_PER_PASS == 0
            platform.wait_for(job_id, f"Checkpoint created at step {step - 1}" if saved else f"Step {step - 1}/")
        os.kill(run_of(platform, job_id), signal.SIGKILL)
    finish(platform, job_id, 2)
    resumed = [int(note.split()[-1]) for note in platform.controls.notes(job_id)]
    assert resumed == [0, (step - 1) // STEPS_PER_PASS * STEPS_PER_PASS]


@pytest.mark.soak
def test_a_run_that_sleeps_for_too_long_is_killed_before_another_starts(platform: ToyPlatform) -> None:
    with platform.held(3):
        job_id = platform.create("asleep")
        platform.wait_for(job_id, "Checkpoint created at step 2")
        asleep = run_of(platform, job_id)
        os.kill(asleep, signal.SIGSTOP)
        wait_until(lambda: len(platform.controls.notes(job_id)) == 2, 60, "no other run took over")
        assert not Path(f"/proc/{asleep}").exists()
    finish(platform, job_id, 2)


@pytest.mark.soak
def test_a_run_that_wakes_up_in_time_goes_on(tmp_path: Path) -> None:
    platform = ToyPlatform(tmp_path)
    platform.start()
    with platform.held(3):
        job_id = platform.create("awake")
        platform.wait_for(job_id, "Checkpoint created at step 2")
        os.kill(run_of(platform, job_id), signal.SIGSTOP)
        platform.wait_for(job_id, "The run has not been heard from")
        os.kill(run_of(platform, job_id), signal.SIGCONT)
    finish(platform, job_id, 1)
    platform.close()


@pytest.mark.soak
def test_run_and_control_plane_may_die_together(platform: ToyPlatform) -> None:
    with platform.held(5):
        job_id = platform.create("both")
        platform.wait_for(job_id, "Checkpoint created at step 4")
        platform.server.kill()
        os.kill(run_of(platform, job_id), signal.SIGKILL)
        platform.start()
    finish(platform, job_id, 2)
