"""The program's own rule for a run at Weights & Biases: all of it lies in its folder, and nothing of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.wandb_folder import read_offline_run
from tunesmith_server.trackers import courier

OPENING = {
    "tracker": "wandb",
    "job_id": "ftjob-1",
    "base_model": "toy" * 30,
    "target": {"project": "p", "name": None, "entity": None, "tags": ["mine"]},
    "settings": {"seed": 7},
}
POINTS = [{"step": step, "time": 1000 + step, "measures": {"train_loss": 1 / step}} for step in (1, 2)]
ENDING = {"status": "succeeded", "step": 2, "time": 9, "model": "ft:toy", "measures": {"evaluation/base/loss": 2.0}}


async def test_a_run_that_is_opened_again_offline_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for killed in (True, False):
        async with courier.started(tmp_path / "run") as carrier:
            opened = await carrier.ask("open", OPENING, 60)
            assert opened == {"last_step": 0, "run_id": "ftjob-1", "url": None}
            await carrier.ask("log", POINTS, 60)
            if not killed:
                await carrier.ask("close", ENDING, 60)
                await carrier.end()

    kept = read_offline_run(tmp_path / "run")
    assert [(step["_step"], step["_timestamp"], step["train_loss"]) for step in kept.steps] == [
        (1, 1001, 1.0),
        (2, 1002, 0.5),
    ]
    assert (kept.run.run_id, kept.run.display_name, kept.exit_code) == ("ftjob-1", "ftjob-1", 0)
    assert list(kept.run.tags) == ["mine", "tunesmith", ("toy" * 30)[:64], "ftjob-1"]
    assert kept.config["seed"] == 7
    assert kept.summary["evaluation/base/loss"] == 2.0
    assert kept.summary["model"] == "ft:toy"
    assert kept.run.host == "tunesmith"
