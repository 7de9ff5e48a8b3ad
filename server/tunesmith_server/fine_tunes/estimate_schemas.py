"""Owns the wire shape of estimates, an addition of ours.

It must not know how an estimate is made.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from tunesmith_server.fine_tunes.method_shapes import DpoHyperparameters, Hyperparameters
from tunesmith_server.fine_tunes.schemas import JobError, TrainingObject


class ResolvedSetting(BaseModel):
    """A setting that was left to the service, and why it became what it is."""

    name: str
    value: str
    reason: str


class EstimatedMemory(BaseModel):
    """What a run needs at its peak, and what the device has."""

    needed_bytes: int | None
    available_bytes: int | None
    fits: bool | None


class EstimatedStart(BaseModel):
    """Where the job would stand in the queue; `expected_start` in Unix seconds, null when nobody knows."""

    position: int
    expected_start: int | None


class EstimatedCost(BaseModel):
    """Trained tokens times the installation's price."""

    amount: float
    currency: str


class EstimateObject(BaseModel):
    """What a job would take. Every key is always present; what is not known yet, or never, is null."""

    id: str
    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    created_at: int
    status: Literal["validating_files", "ready", "failed"]
    error: JobError | None
    model: str
    rows: int | None
    tokens: int | None
    """Of one pass, prompts included."""
    trained_tokens: int | None
    """Of all passes, prompts included."""
    steps: int | None
    hyperparameters: DpoHyperparameters | Hyperparameters
    training: TrainingObject
    resolved: list[ResolvedSetting]
    memory: EstimatedMemory | None
    seconds: float | None
    """Expected of the run, once it has started."""
    queue: EstimatedStart | None
    cost: EstimatedCost | None
    findings: list[Any]
    rejects_file: str | None
