"""Owns which way leads to each named point: what a client does until the armed server is dead, and how that must end.

It must not know what is checked afterwards.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.toy_platform import REFUSED_ROWS, ROWS, ToyPlatform
from tests.support.live_server import wait_until
from tunesmith_server.fine_tunes import events

RESUMED = events.resumed().message

_SWEEP = """
import asyncio, sys, time
from pathlib import Path
from tests.support.clock import MovableClock
from tests.support.core import make_core
from tunesmith_server import failpoints
from tunesmith_server.config import Settings
from tunesmith_server.registry.sweep import RevisionsSweep
failpoints.arm(sys.argv[2])
asyncio.run(RevisionsSweep(make_core(Settings(home=Path(sys.argv[1])), MovableClock(time.time() + 172800))).run_once())
"""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`act` is called while the server is armed and again after its restart: a client repeats what was not answered."""

    act: Callable[[ToyPlatform, str], None]
    status: str = "succeeded"
    """How the job ends that was made under the key of the scenario."""
    times: int = 1
    """Which passage of the point is the deadly one."""


def run_job(platform: ToyPlatform, key: str) -> None:
    """A job that runs through."""
    platform.create(key)


def fail_job(platform: ToyPlatform, key: str) -> None:
    """A job whose preflight refuses a row."""
    platform.create(key, REFUSED_ROWS)


def cancel_job(platform: ToyPlatform, key: str) -> None:
    """A job that is cancelled while it runs."""
    with platform.held(2):
        job_id = platform.create(key)
        platform.wait_for(job_id, "Step 1/")
        platform.steer(job_id, "cancel")


def pause_and_resume_job(platform: ToyPlatform, key: str) -> None:
    """A job that is paused while it runs, and resumed once it is paused."""
    with platform.held(4):
        job_id = platform.create(key)
        platform.wait_for(job_id, "Step 3/")
        if not platform.says(job_id, RESUMED):
            platform.steer(job_id, "pause")
            wait_until(lambda: platform.server.job(job_id)["status"] == "paused", 60, "the job did not pause")
            platform.steer(job_id, "resume")


def upload_in_parts(platform: ToyPlatform, key: str) -> None:
    """A job on a file that came in two parts."""
    if key not in platform.memory:
        body = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": len(ROWS), "mime_type": "text/jsonl"}
        upload = platform.server.request("POST", "/uploads", json=body).json()["id"]
        half = len(ROWS) // 2
        parts = [
            platform.server.request("POST", f"/uploads/{upload}/parts", files={"data": ("part", content)}).json()["id"]
            for content in (ROWS[:half], ROWS[half:])
        ]
        platform.memory[key] = (upload, parts)
    upload, parts = platform.memory[key]
    answer = platform.server.request("POST", f"/uploads/{upload}/complete", json={"part_ids": parts})
    platform.files[key] = answer.json()["file"]["id"]
    platform.create(key)


def import_model(platform: ToyPlatform, key: str) -> None:
    """A job whose model leaves and comes back as a file."""
    job_id = platform.create(key)
    job = platform.server.wait_for_job(job_id)
    if key not in platform.memory:
        archive = platform.server.request("GET", f"/model_archives/{job['fine_tuned_model']}").content
        files, purpose = {"file": ("model.tar", archive)}, {"purpose": "model"}
        platform.memory[key] = platform.server.request("POST", "/files", files=files, data=purpose).json()["id"]
    body = {"base_model": job["model"], "file": platform.memory[key]}
    headers = {"Idempotency-Key": f"{key}-import"}
    name = platform.server.request("POST", "/models", json=body, headers=headers).json()["id"]
    assert platform.memory.setdefault(f"{key}-import", name) == name, "one key, two models"

    def is_ready() -> bool:
        model = platform.server.request("GET", f"/models/{name}").json()
        assert model["status"] in ("importing", "ready"), model
        return bool(model["status"] == "ready")

    wait_until(is_ready, 60, "the model was not imported")


def capture(platform: ToyPlatform, key: str) -> None:
    """A chat completion is kept beside a job."""
    platform.create(key)
    platform.capture(key)


def hear_of_job(platform: ToyPlatform, key: str) -> None:
    """A job whose end is told to an endpoint."""
    platform.listen()
    platform.create(key)


def follow_job(platform: ToyPlatform, key: str) -> None:
    """A job that a tracker hears of in two parts."""
    with platform.held(4):
        job_id = platform.create(key, integrations=[{"type": "mlflow", "mlflow": {"experiment": "faults"}}])
        wait_until(
            lambda: platform.says(job_id, "MLflow follows") and bool(platform.tracked_steps(job_id)),
            60,
            "the tracker was not told",
        )


def sweep_orphan(platform: ToyPlatform, key: str) -> None:
    """A revision that nobody names is swept by a process that dies; what is named is left alone."""
    platform.create(key)
    if key not in platform.memory:
        platform.memory[key] = "swept"
        platform.settle()
        orphan = platform.server.home / "objects" / "revisions" / ("0" * 64)
        orphan.mkdir()
        (orphan / "manifest.json").write_bytes(b"{}")
        command = [sys.executable, "-c", _SWEEP, str(platform.server.home), "sweep.claimed"]
        assert subprocess.run(command, check=False).returncode == -9
        platform.server.kill()


JOB = Scenario(run_job)
STEERED = [
    Scenario(cancel_job, "cancelled"),
    Scenario(pause_and_resume_job),
    Scenario(pause_and_resume_job, times=2),
]
SCENARIOS: dict[str, list[Scenario]] = {
    "create.writing": [JOB],
    "create.written": [JOB],
    "steer.writing": STEERED,
    "steer.written": STEERED,
    "claim.writing": [JOB, Scenario(run_job, times=2)],
    "claim.written": [JOB, Scenario(run_job, times=2)],
    "launch.done": [JOB, Scenario(run_job, times=2)],
    "executor.folder_made": [JOB, Scenario(run_job, times=2)],
    "executor.process_started": [JOB, Scenario(run_job, times=2)],
    "executor.run_recorded": [JOB],
    "executor.stopped": [JOB],
    "executor.run_killed": [JOB],
    "heartbeat.writing": [JOB, Scenario(run_job, times=4)],
    "heartbeat.written": [JOB, Scenario(run_job, times=4)],
    "preflight.writing": [JOB],
    "preflight.written": [JOB],
    "promotion.copied": [JOB],
    "promotion.sealed": [JOB, Scenario(run_job, times=3)],
    "checkpoint.verified": [JOB],
    "checkpoint.writing": [JOB],
    "checkpoint.written": [JOB, Scenario(run_job, times=3)],
    "success.verified": [JOB],
    "success.writing": [JOB],
    "success.written": [JOB],
    "import.writing": [Scenario(import_model)],
    "import.written": [Scenario(import_model)],
    "failure.writing": [Scenario(fail_job, "failed")],
    "failure.written": [Scenario(fail_job, "failed")],
    "ending.log_kept": [JOB, Scenario(run_job, times=2), Scenario(cancel_job, "cancelled", times=2)],
    "ending.writing": [JOB, Scenario(run_job, times=2), Scenario(cancel_job, "cancelled", times=2)],
    "ending.written": [JOB, Scenario(run_job, times=2), Scenario(cancel_job, "cancelled", times=2)],
    "file.stored": [JOB, Scenario(upload_in_parts)],
    "file.writing": [JOB],
    "file.written": [JOB, Scenario(upload_in_parts)],
    "capture.stored": [Scenario(capture)],
    "capture.writing": [Scenario(capture)],
    "capture.written": [Scenario(capture)],
    "upload.writing": [Scenario(upload_in_parts)],
    "upload.written": [Scenario(upload_in_parts)],
    "news.writing": [Scenario(hear_of_job)],
    "news.written": [Scenario(hear_of_job)],
    "delivery.sent": [Scenario(hear_of_job)],
    "delivery.written": [Scenario(hear_of_job)],
    "tracker.opened": [Scenario(follow_job)],
    "tracker.told": [Scenario(follow_job), Scenario(follow_job, times=2)],
    "tracker.closed": [Scenario(follow_job)],
    "sweep.claimed": [Scenario(sweep_orphan)],
    "leadership.renewed": [JOB, Scenario(run_job, times=6)],
}
"""Every name of failpoints.py."""
