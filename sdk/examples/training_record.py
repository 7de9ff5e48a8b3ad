"""Reads back what a finished fine-tune recorded: its losses, and its hyperparameters with their reasons.

It knows the job's result files and events, and nothing of how they are shown.
"""

import csv
import io
from collections.abc import Sequence

from examples.report import CurvePoint, Setting
from tunesmith import Tunesmith
from tunesmith.types import FineTune, FineTuneEvent


def curve_of(client: Tunesmith, job: FineTune) -> list[CurvePoint]:
    """The steps of the job's results.csv, in order; empty if it has none."""
    for file_id in job.result_files:
        if client.files.retrieve(file_id).filename.endswith(".csv"):
            return parse_curve(client.files.content(file_id).decode("utf-8"))
    return []


def parse_curve(text: str) -> list[CurvePoint]:
    """The steps of a results.csv. Rows without a training loss are left out."""
    return [
        CurvePoint(int(row["step"]), float(row["train_loss"]), _optional(row.get("valid_loss")))
        for row in csv.DictReader(io.StringIO(text))
        if row.get("train_loss")
    ]


def settings_of(events: Sequence[FineTuneEvent]) -> list[Setting]:
    """Every number that the service settled on, with its reason; empty if the job ended before that."""
    return [
        Setting(str(setting["name"]), str(setting["value"]), str(setting["reason"]))
        for event in events
        for setting in (event.data or {}).get("resolved", [])
    ]


def _optional(cell: str | None) -> float | None:
    return float(cell) if cell else None
