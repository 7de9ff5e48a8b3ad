"""Owns the tables of jobs, and what their attempts have reported.

It must not know how rows are used; SQL lives in each domain's repository.py.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Boolean, Float, ForeignKey, Index, Integer, Text
from sqlalchemy.orm import Mapped, mapped_column

from tunesmith_server.db import guards
from tunesmith_server.db.tables.base import Base, JsonObject


class FineTuneRow(Base):
    """A job. `lease_token` is the id of the attempt that owns it; no write without it while it is set."""

    __tablename__ = "fine_tunes"
    __table_args__ = (
        Index("ix_fine_tunes_project_position", "project_id", "position", "id"),
        Index("ix_fine_tunes_state", "state", "created_at"),
        Index("ix_fine_tunes_body_hash", "project_id", "body_hash", "created_at"),
        Index("ix_fine_tunes_project_state", "project_id", "state", "base_model_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str] = mapped_column(default="job")
    """job | estimate | import: an estimate ends after its preflight, an import with a model instead of it."""
    state: Mapped[str]
    lease_token: Mapped[str | None]
    lease_expires_at: Mapped[float | None] = mapped_column(Float)
    epoch: Mapped[int] = mapped_column(Integer)
    """Fencing number of the newest attempt; 0 before the first."""
    cancel_requested: Mapped[bool] = mapped_column(Boolean)
    preempt_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    """The scheduler wants the devices back: the run saves and ends, and the job waits again."""
    auto_start: Mapped[bool] = mapped_column(Boolean, default=True)
    """False: the job is paused once its files are validated."""
    priority: Mapped[int] = mapped_column(Integer, default=0)
    """Higher starts first."""
    devices: Mapped[int] = mapped_column(Integer, default=1)
    """Accelerators that a run takes, all or none; on a machine without any, one run slot each."""
    max_run_seconds: Mapped[int | None]
    """Time in `running` after which the job pauses itself."""
    max_device_seconds: Mapped[int | None]
    """Budget after which the job pauses itself."""
    run_seconds: Mapped[float] = mapped_column(Float, default=0.0)
    """Time that ended training attempts took; the live one counts from its start."""
    device_seconds: Mapped[float] = mapped_column(Float, default=0.0)
    not_before: Mapped[float] = mapped_column(Float)
    """Back-off: no attempt starts earlier."""
    retries: Mapped[JsonObject]
    """Retries used so far, by cause."""

    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    start_model: Mapped[str | None] = mapped_column(Text)
    """The tuned model on that base model that the job goes on from, as it was named; NULL: the base model itself."""
    start_revision: Mapped[str | None]
    """What that name stood for when the job was made; it stays while the job has not ended."""
    training_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    """Of an import: the uploaded model."""
    validation_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    method: Mapped[str]
    suffix: Mapped[str | None]
    name_id: Mapped[str]
    """Last part of the model name."""
    seed: Mapped[int]
    requested: Mapped[JsonObject]
    """weights, the method's numbers and what `training` holds; what is absent means auto."""
    resolved: Mapped[JsonObject | None]
    """The same, every number set, plus context_length, learning_rate, total_steps, base_revision; after preflight."""
    user_metadata: Mapped[JsonObject | None]
    integrations: Mapped[list[Any] | None]
    body_hash: Mapped[str] = mapped_column(default="")
    """SHA-256 of the create call, to recognise one that a client repeats."""
    key_id: Mapped[str | None]
    """The API key that made the job."""
    report: Mapped[JsonObject | None]
    """What the preflight found: counts, findings, memory and time expected."""
    rejects_file_id: Mapped[str | None]
    """The rows that the preflight refused, cut or dropped, with reasons."""

    progress: Mapped[JsonObject | None]
    """phase, step, total_steps, remaining_seconds as last reported by the current attempt, and estimated_finish."""
    last_sequence: Mapped[int]
    """Highest heartbeat sequence of the current attempt."""
    event_count: Mapped[int]
    fine_tuned_model: Mapped[str | None] = mapped_column(Text)
    revision: Mapped[str | None]
    evaluation: Mapped[JsonObject | None]
    result_file_ids: Mapped[list[Any]]
    trained_tokens: Mapped[int | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None] = mapped_column(Text)
    error_param: Mapped[str | None]
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    """Microseconds at which the row was made: the order of lists and nothing else."""
    created_at: Mapped[int]
    finished_at: Mapped[int | None]


guards.keep_ended_jobs(Base.metadata.tables[FineTuneRow.__tablename__])


class AttemptRow(Base):
    """One execution of a job on an executor."""

    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_job", "job_id", "epoch", unique=True), Index("ix_attempts_state", "state"))

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tunes.id"))
    epoch: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str]
    """preflight | training"""
    state: Mapped[str]
    """live | ended"""
    end_cause: Mapped[str | None]
    exit_code: Mapped[int | None] = mapped_column(Integer)
    unreachable_since: Mapped[float | None] = mapped_column(Float)
    device_ids: Mapped[list[Any]] = mapped_column(default=list)
    """Devices that the run holds."""
    created_at: Mapped[int]
    started_at: Mapped[int | None]
    """Since when the run is known to run, by its first call or by its executor; NULL while it waits in a queue."""
    ended_at: Mapped[int | None]


class EventRow(Base):
    """A line of a job's history; `number` counts from 1 within the job."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job", "job_id", "number", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tunes.id"))
    number: Mapped[int]
    created_at: Mapped[int]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[JsonObject | None]


class StepMetricRow(Base):
    """Metrics of one optimizer step; a later attempt that repeats a step replaces them."""

    __tablename__ = "step_metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tunes.id"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    data: Mapped[JsonObject]


class CheckpointRow(Base):
    """A committed checkpoint: verified bytes that a run can resume from and that can be served."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("ix_checkpoints_job", "job_id", "step", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tunes.id"))
    step: Mapped[int] = mapped_column(Integer)
    epoch: Mapped[int] = mapped_column(Integer)
    prefix: Mapped[str] = mapped_column(Text)
    """Storage prefix of the attempt's step folder, without a slash at the end."""
    training_state: Mapped[list[Any]]
    """[{path, size, sha256}] below `prefix`."""
    revision: Mapped[str] = mapped_column(ForeignKey("revisions.id"))
    model_name: Mapped[str] = mapped_column(Text)
    metrics: Mapped[JsonObject]
    created_at: Mapped[int]
    removed_at: Mapped[int | None]
    """Since when it is not kept any more: it has no name, and its bytes may be gone."""
    damaged_at: Mapped[int | None]
    """Since when it is known that no run can resume from it; unset again by a sound one of the same step."""


class CheckpointPermissionRow(Base):
    """Lets another project prompt a checkpoint."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (Index("ix_checkpoint_permissions_checkpoint", "checkpoint_id", "project_id", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]


class TrackedRunRow(Base):
    """What an experiment tracker is still to hear of a job; gone once it has heard everything."""

    __tablename__ = "tracked_runs"
    __table_args__ = (Index("ix_tracked_runs_not_before", "not_before"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tunes.id"), primary_key=True)
    tracker: Mapped[str] = mapped_column(primary_key=True)
    """wandb | mlflow"""
    not_before: Mapped[float] = mapped_column(Float)
    """Back-off: it is not spoken to earlier."""
    failures: Mapped[int] = mapped_column(Integer)
    """Since it answered last."""
    opened_at: Mapped[int | None]
    """When it first had a run for the job."""
    complained_at: Mapped[int | None]
    """When the job's history said that it cannot be reached, which it says once."""
