"""Owns the wire shapes of a job's history: events, checkpoints, metrics, and pages of them.

It must not know where the history is stored.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class EventObject(BaseModel):
    """OpenAI's `fine_tuning.job.event`."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None


class CheckpointObject(BaseModel):
    """OpenAI's `fine_tuning.job.checkpoint`."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, float]


class MetricsObject(BaseModel):
    """The measures of one optimizer step; null where a measure was not taken."""

    object: Literal["fine_tuning.job.metrics"] = "fine_tuning.job.metrics"
    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    learning_rate: float | None = None
    tokens: int | None = None
    """Of the step, padding left out."""
    seconds: float | None = None


class EventPage(BaseModel):
    """A job's history, newest first."""

    object: Literal["list"] = "list"
    data: list[EventObject]
    has_more: bool


class CheckpointPage(BaseModel):
    """A job's checkpoints, newest first."""

    object: Literal["list"] = "list"
    data: list[CheckpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class MetricsPage(BaseModel):
    """Measures of a job's steps, first step first; `last_step` is the `after` of the next page."""

    object: Literal["list"] = "list"
    data: list[MetricsObject]
    last_step: int | None
    has_more: bool
