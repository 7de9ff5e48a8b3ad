"""The line says phase, step, losses and the time left, and never floods a log."""

from __future__ import annotations

import pytest

from examples.progress_line import ProgressLine
from tunesmith.types import FineTune, FineTuneEvent


def job(status: str, step: int, remaining: float | None = None) -> FineTune:
    progress = {"phase": "training", "step": step, "total_steps": 60, "remaining_seconds": remaining}
    return FineTune.model_validate(
        {"id": "ftjob-1", "created_at": 1, "model": "m", "status": status, "training_file": "f", "progress": progress}
    )


def event(level: str, message: str, **data: float) -> FineTuneEvent:
    kind = "metrics" if data else "message"
    return FineTuneEvent(id="e", created_at=1, level=level, message=message, type=kind, data=dict(data) or None)


def test_phase_step_loss_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    line.show(job("running", 24, 125.4), [event("info", "step 24", train_loss=0.4142)])
    line.close()
    assert capsys.readouterr().out == "  training  step 24/60  train loss 0.414  2:05 left\n"


def test_a_log_is_not_flooded_but_gets_warnings_and_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    for step in range(60):
        line.show(job("running", step), [event("warn", "a row was cut")] if step == 5 else [])
    line.show(job("succeeded", 60), [])
    line.close()
    assert capsys.readouterr().out.splitlines() == [
        "  training  step 0/60",
        "  warn: a row was cut",
        "  succeeded",
    ]
