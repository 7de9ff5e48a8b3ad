"""Owns what happens on a platform before it is copied, and what must be so after the copy has taken its place."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.toy_platform import ToyPlatform
from tests.support.live_server import wait_until

HELD, SAVED = 4, 2
"""The step before which a run is held, and that of its last checkpoint then."""


class Life:
    """A job that has ended, its model and a name for it, a second key, and a job that trains."""

    def __init__(self, platform: ToyPlatform) -> None:
        self._platform = platform
        platform.start()
        wait_until(lambda: bool(platform.server.request("GET", "/models").json()["data"]), 60, "no base model")
        self.ended = platform.create("ended")
        platform.settle()
        model = platform.server.job(self.ended)["fine_tuned_model"]
        deployment = {"name": "support", "targets": [{"model": model, "weight": 1}]}
        assert platform.server.request("POST", "/deployments", json=deployment).status_code == 200
        key = platform.server.request("POST", "/organization/projects/default/api_keys", json={"name": "second"})
        assert key.status_code == 200, key.text
        self._key = key.json()["value"]
        job, file_id = f"/fine_tuning/jobs/{self.ended}", platform.files["ended"]
        self._paths = [job, f"{job}/events?limit=100", f"{job}/checkpoints", f"/files/{file_id}/content"]
        self._paths += [f"/files/{file_id}", "/deployments/support", f"/model_archives/{model}"]

    @contextmanager
    def training(self) -> Iterator[None]:
        """The second job trains inside the block and has a checkpoint; its run is killed with the platform."""
        with self._platform.held(HELD):
            self.running = self._platform.create("running")
            self._platform.wait_for(self.running, f"Checkpoint created at step {SAVED}")
            self._told = self._answers(self._platform)
            yield
            self._platform.server.kill()
            os.kill(int(self._platform.controls.notes(self.running)[-1].split()[2]), signal.SIGKILL)

    def goes_on(self, restored: ToyPlatform) -> None:
        """Asserts that the copy, already placed, answers as the original did and finishes what that had begun."""
        for job_id in self._platform.jobs.values():
            # The witness of runs is the test's own, and no part of a platform.
            shutil.copy(self._platform.controls.folder / job_id, restored.controls.folder / job_id)
        restored.jobs, restored.files = self._platform.jobs, self._platform.files
        restored.start()
        assert self._answers(restored) == self._told
        restored.settle()
        job = restored.server.job(self.running)
        assert job["status"] == "succeeded", job["error"]
        begun_from = [note.split()[-1] for note in restored.controls.notes(self.running)]
        assert begun_from == ["0", str(SAVED)], "it did not go on from its checkpoint"
        restored.create("new")
        restored.settle()
        restored.check()

    def _answers(self, platform: ToyPlatform) -> dict[str, bytes]:
        """What users see, asked with the second key."""
        answers = {}
        for path in self._paths:
            answer = platform.server.request("GET", path, headers={"Authorization": f"Bearer {self._key}"})
            assert answer.status_code == 200, (path, answer.text)
            answers[path] = answer.content
        return answers
