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


def settings_of(job: FineTune, events: Sequence[FineTuneEvent]) -> list[Setting]:
    """What the service chose, with its reasons, and then what the job was asked to use."""
    chosen = [
        Setting(str(data["name"]), str(data["value"]), str(data["reason"]))
        for data in (event.data or {} for event in events)
        if {"name", "value", "reason"} <= data.keys()
    ]
    known = {setting.name for setting in chosen}
    numbers = {**_numbers(job.hyperparameters), **_numbers(job.training)}
    return chosen + [Setting(name, str(value), "asked for") for name, value in numbers.items() if name not in known]


def _numbers(shape: object) -> dict[str, object]:
    if shape is None:
        return {}
    return {name: value for name, value in vars(shape).items() if value is not None}


def _optional(cell: str | None) -> float | None:
    return float(cell) if cell else None
