"""What a job recorded is read back whole: its losses, and its numbers with their reasons."""

from __future__ import annotations

from examples.report import CurvePoint, Setting
from examples.training_record import parse_curve, settings_of
from tunesmith.types import FineTuneEvent


def test_validation_is_known_only_where_it_was_measured() -> None:
    text = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2.5,0.4,,\n2,0.5,0.8,0.6,0.7\n,,,,\n"
    assert parse_curve(text) == [CurvePoint(1, 2.5), CurvePoint(2, 0.5, 0.6)]


def test_the_numbers_that_the_service_settled_on_come_with_their_reasons() -> None:
    data = {"resolved": [{"name": "batch_size", "value": "8", "reason": "at least fifty steps"}]}
    events = [
        FineTuneEvent(id="e1", created_at=1, level="info", message="Automatic settings", data=data),
        FineTuneEvent(id="e2", created_at=1, level="info", message="Step 1/60", type="metrics", data={"step": 1}),
        FineTuneEvent(id="e3", created_at=1, level="info", message="Done"),
    ]
    assert settings_of(events) == [Setting("batch_size", "8", "at least fifty steps")]
