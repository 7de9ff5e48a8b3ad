"""Owns every table: columns, keys and constraints.

It must not know how rows are used; SQL lives in each domain's repository.py.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JsonObject = dict[str, Any]


class Base(DeclarativeBase):
    """Root of all rows. Times are Unix seconds. No value is SQL NULL, never the JSON null."""

    type_annotation_map = {  # noqa: RUF012
        JsonObject: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        str: String(255),
        int: BigInteger,
    }


class ProjectRow(Base):
    """An isolated tenant; its id is also its part of model names."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[int]


class ApiKeyRow(Base):
    """A key of a project, stored as a keyed hash only."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    """Hex HMAC-SHA-256 of the key under the server's secret."""
    created_at: Mapped[int]
    revoked_at: Mapped[int | None]


class FileRow(Base):
    """An uploaded dataset or a result file; the bytes lie in object storage under `storage_key`."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_project_position", "project_id", "position", "id"),
        Index("ix_files_project_sha256", "project_id", "sha256"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    status: Mapped[str]
    rows: Mapped[int | None]
    """Lines with data, for datasets."""
    storage_key: Mapped[str] = mapped_column(Text)
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    """Microseconds at which the row was made: the order of lists and nothing else."""
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]


class BaseModelRow(Base):
    """A catalogue entry and what became of its import."""

    __tablename__ = "base_models"

    id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    aliases: Mapped[list[Any]]
    state: Mapped[str]
    """importing | ready | failed"""
    revision: Mapped[str | None]
    files: Mapped[list[Any] | None]
    """[{path, size, sha256}] of the manifest."""
    context_length: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int]
    version: Mapped[int]
    """Place in the order of changes that gateways follow."""


class FineTuneRow(Base):
    """A job. `lease_token` is the id of the attempt that owns it; no write without it while it is set."""

    __tablename__ = "fine_tunes"
    __table_args__ = (
        Index("ix_fine_tunes_project_position", "project_id", "position", "id"),
        Index("ix_fine_tunes_state", "state", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    state: Mapped[str]
    lease_token: Mapped[str | None]
    lease_expires_at: Mapped[float | None] = mapped_column(Float)
    epoch: Mapped[int] = mapped_column(Integer)
    """Fencing number of the newest attempt; 0 before the first."""
    cancel_requested: Mapped[bool] = mapped_column(Boolean)
    not_before: Mapped[float] = mapped_column(Float)
    """Back-off: no attempt starts earlier."""
    retries: Mapped[JsonObject]
    """Retries used so far, by cause."""

    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    training_file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    method: Mapped[str]
    suffix: Mapped[str | None]
    name_id: Mapped[str]
    """Last part of the model name."""
    seed: Mapped[int]
    requested: Mapped[JsonObject]
    """weights and n_epochs, batch_size, learning_rate_multiplier, lora_rank, lora_alpha; a number absent means auto."""
    resolved: Mapped[JsonObject | None]
    """The same, every number set, plus context_length, learning_rate, total_steps, base_revision; after preflight."""
    user_metadata: Mapped[JsonObject | None]
    integrations: Mapped[list[Any] | None]

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
    created_at: Mapped[int]
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


class RevisionRow(Base):
    """A verified artifact; its id is the SHA-256 of its manifest. Never changed."""

    __tablename__ = "revisions"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    """adapter | full"""
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    base_revision: Mapped[str]
    files: Mapped[list[Any]]
    """[{path, size, sha256}]; stored under revisions/<id>/<path>."""
    created_at: Mapped[int]


class ModelRow(Base):
    """A model name: an alias that points at a revision."""

    __tablename__ = "models"
    __table_args__ = (Index("ix_models_project", "project_id"), Index("ix_models_version", "version"))

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tunes.id"))
    revision: Mapped[str] = mapped_column(ForeignKey("revisions.id"))
    checkpoint: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]
    version: Mapped[int]
    """Place in the order of changes that gateways follow."""


class IdempotencyRow(Base):
    """The answer that was given to a create call, replayed when the call is repeated."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[str]
    resource_id: Mapped[str]
    created_at: Mapped[int]


class LeaseRow(Base):
    """Named leadership of a control-plane process."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    token: Mapped[str]
    expires_at: Mapped[float] = mapped_column(Float)


class CounterRow(Base):
    """A number that only grows; `registry` orders the changes that gateways follow."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]
