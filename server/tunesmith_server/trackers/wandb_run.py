"""Owns one run at Weights & Biases, by its official client.

It must not know the control plane; it lives in a process of its own (courier_program.py), since the client starts
another one and threads.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import wandb

_FINISH_SECONDS = 240
_MAX_TAG_LENGTH = 64


class WandbRun:
    """The run whose id is the job's; opened again it goes on after the last step that the tracker has.

    `last_step` is that step. Offline nobody knows it: the run is written anew into `folder`, which the operator
    hands over with `wandb sync`.
    """

    def __init__(self, opening: dict[str, Any], folder: Path) -> None:
        target, job_id = opening["target"], opening["job_id"]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._run = wandb.init(
            entity=target["entity"] or None,
            project=target["project"],
            name=target["name"] or job_id,
            tags=_tags(opening),
            config=opening["settings"],
            id=job_id,
            resume="allow",
            settings=_settings(folder),
        )
        self.last_step = max(0, self._run.step - 1)
        self.run_id = job_id
        self.url = None if self._run.offline else self._run.url

    def log(self, points: list[dict[str, Any]]) -> None:
        """Hands steps over; the client sends them by and by."""
        for point in points:
            self._run.log({**point["measures"], "_timestamp": point["time"]}, step=point["step"], commit=True)

    def close(self, ending: dict[str, Any]) -> None:
        """Returns once the tracker has everything."""
        self._run.summary.update({**ending["measures"], "status": ending["status"], "model": ending["model"]})
        self._run.finish(exit_code=int(ending["status"] in ("failed", "cancelled")))
        if not self._run.offline:
            shutil.rmtree(self._folder, ignore_errors=True)


def _tags(opening: dict[str, Any]) -> list[str]:
    ours = ["tunesmith", opening["base_model"], opening["job_id"]]
    return list(dict.fromkeys([*(opening["target"]["tags"] or ()), *(tag[:_MAX_TAG_LENGTH] for tag in ours)]))


def _settings(folder: Path) -> wandb.Settings:
    """Nothing about this machine leaves it, and nothing waits for ever."""
    return wandb.Settings(
        root_dir=str(folder),
        console="off",
        disable_code=True,
        disable_git=True,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
        host="tunesmith",
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
