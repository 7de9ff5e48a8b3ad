"""Owns every table: columns, keys and constraints.

It must not know how rows are used; SQL lives in each domain's repository.py.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Text,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tunesmith_server.db import guards

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
    name: Mapped[str] = mapped_column(default="")
    quotas: Mapped[JsonObject] = mapped_column(default=dict)
    """Limits by name (projects/quotas.py); a name absent means the installation's default."""
    created_at: Mapped[int]
    archived_at: Mapped[int | None]


class ApiKeyRow(Base):
    """A key of a project, stored as a keyed hash only."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    """Hex HMAC-SHA-256 of the key under the server's secret."""
    redacted: Mapped[str] = mapped_column(default="")
    """The first and last characters, so that people recognise their key."""
    scopes: Mapped[list[Any]] = mapped_column(default=list)
    """What the key may do (projects/scopes.py)."""
    capture: Mapped[bool] = mapped_column(Boolean, default=False, server_default=text("false"))
    """Whether its chat completions are kept (captures/)."""
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    last_used_at: Mapped[int | None]
    revoked_at: Mapped[int | None]


class CaptureRow(Base):
    """A chat completion that was kept; what was said lies in object storage (captures/content.py)."""

    __tablename__ = "captures"
    __table_args__ = (
        Index("ix_captures_project_position", "project_id", "position", "id"),
        Index("ix_captures_created", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """The completion's own."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    key_id: Mapped[str]
    model: Mapped[str] = mapped_column(Text)
    """As the client named it."""
    request_id: Mapped[str]
    user_metadata: Mapped[JsonObject]
    finish_reason: Mapped[str]
    prompt_sha256: Mapped[str]
    """Of messages and tools: equal prompts have equal ones."""
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    bytes: Mapped[int]
    """Of the object."""
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]
    """Its object is gone; the row stays for a day, so that a report that comes twice does not bring it back."""


class FileRow(Base):
    """An uploaded dataset or a result file; the bytes lie in object storage under `storage_key`."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_project_position", "project_id", "position", "id"),
        Index("ix_files_project_sha256", "project_id", "sha256"),
        Index("ix_files_storage_key", "storage_key"),
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
    expires_at: Mapped[int | None]
    deleted_at: Mapped[int | None]


class UploadRow(Base):
    """A file that arrives in parts; once completed it is a FileRow."""

    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_status", "status", "expires_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str]
    mime_type: Mapped[str]
    bytes: Mapped[int]
    """What the finished file must have."""
    status: Mapped[str]
    """pending | completed | cancelled | expired"""
    file_expires_after: Mapped[int | None]
    """Seconds after which the finished file expires."""
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[int]
    expires_at: Mapped[int]


class UploadPartRow(Base):
    """One stored part of an upload."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("ix_upload_parts_upload", "upload_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    bytes: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str] = mapped_column(Text)
    created_at: Mapped[int]


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


class CheckpointPermissionRow(Base):
    """Lets another project prompt a checkpoint."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (Index("ix_checkpoint_permissions_checkpoint", "checkpoint_id", "project_id", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]


class RevisionRow(Base):
    """A verified artifact; its id is the SHA-256 of its manifest. Its bytes never change."""

    __tablename__ = "revisions"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    """adapter | full"""
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    base_revision: Mapped[str]
    files: Mapped[list[Any]]
    """[{path, size, sha256}]; stored under revisions/<id>/<path>."""
    created_at: Mapped[int]
    removed_at: Mapped[int | None]
    """Since when nothing refers to it: its bytes may be gone, until the same ones are promoted again."""


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


class GatewayRow(Base):
    """What a gateway said last of its engines and itself; gone some time after it has fallen silent."""

    __tablename__ = "gateways"

    id: Mapped[str] = mapped_column(primary_key=True)
    """New with each of its starts."""
    replicas: Mapped[list[Any]]
    """What its engines hold (registry/replicas.py)."""
    presence: Mapped[JsonObject | None]
    """What other gateways are to know of it; NULL where none reaches it."""
    heard_at: Mapped[float] = mapped_column(Float)


class DeploymentRow(Base):
    """A name of a project's own that stands for one or several models, by weight."""

    __tablename__ = "deployments"
    __table_args__ = (Index("ix_deployments_version", "version"),)

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]
    """Its newest version."""
    targets: Mapped[list[Any]]
    """[{model, weight}]."""
    pinned: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[int]
    updated_at: Mapped[int]
    deleted_at: Mapped[int | None]
    version: Mapped[int]
    """Place in the order of changes that gateways follow."""


class DeploymentVersionRow(Base):
    """What a deployment stood for, from one change of its targets to the next."""

    __tablename__ = "deployment_versions"
    __table_args__ = (ForeignKeyConstraint(["project_id", "name"], ["deployments.project_id", "deployments.name"]),)

    project_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    targets: Mapped[list[Any]]
    created_at: Mapped[int]


class IdempotencyRow(Base):
    """The answer that was given to a create call, replayed when the call is repeated."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[str]
    resource_id: Mapped[str]
    created_at: Mapped[int]


class LeaseRow(Base):
    """Temporary ownership of a name, such as leadership: a token and the time until which it counts."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    token: Mapped[str]
    expires_at: Mapped[float] = mapped_column(Float)


class CounterRow(Base):
    """A number that only grows; `registry` orders the changes that gateways follow."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]


class WebhookEndpointRow(Base):
    """A URL of the user's that wants to hear of events; its signing secret is derived from the server's."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("ix_webhook_endpoints_project", "project_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[Any]]
    secret_version: Mapped[int] = mapped_column(Integer, default=1)
    """Which of its secrets signs; a rotation counts it up."""
    old_secret_until: Mapped[int | None]
    """Until when the secret before signs as well."""
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]
    updated_at: Mapped[int]
    deleted_at: Mapped[int | None]


class OutboxRow(Base):
    """Something that the outside must hear of, written in the transaction in which it became true."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_fanned_out", "fanned_out_at", "position"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    type: Mapped[str]
    """fine_tuning.job.succeeded | …"""
    subject_id: Mapped[str]
    """The job."""
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]
    fanned_out_at: Mapped[int | None]
    """When its deliveries were written."""


class WebhookDeliveryRow(Base):
    """One message to one endpoint, tried until it is taken or given up."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_due", "state", "not_before"),
        Index("ix_webhook_deliveries_once", "outbox_id", "endpoint_id", unique=True),
        Index("ix_webhook_deliveries_endpoint", "endpoint_id", "position"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    outbox_id: Mapped[str] = mapped_column(ForeignKey("outbox.id"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    state: Mapped[str]
    """pending | sending | delivered | given_up"""
    attempts: Mapped[int] = mapped_column(Integer)
    not_before: Mapped[float] = mapped_column(Float)
    """When it is due; of one that is being sent, when its sender counts as gone."""
    last_status: Mapped[int | None] = mapped_column(Integer)
    last_error: Mapped[str | None] = mapped_column(Text)
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]
    finished_at: Mapped[int | None]


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


class AuditRow(Base):
    """Who did what: one line for each call that changed something or was refused for lack of a right."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_position", "position", "id"),
        Index("ix_audit_log_project", "project_id", "position"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str | None]
    key_id: Mapped[str | None]
    action: Mapped[str]
    """file.created, api_key.deleted, … (projects/scopes.py), or the operation itself when it was only refused."""
    target_id: Mapped[str | None] = mapped_column(Text)
    outcome: Mapped[str]
    """ok, or the error's code."""
    request_id: Mapped[str]
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]


class UsageRow(Base):
    """What one key used of one model within one hour."""

    __tablename__ = "usage"
    __table_args__ = (Index("ix_usage_project_hour", "project_id", "kind", "hour"),)

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key_id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    """inference | training"""
    hour: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Unix seconds of its start."""
    requests: Mapped[int]
    input_tokens: Mapped[int]
    output_tokens: Mapped[int]
    device_seconds: Mapped[float] = mapped_column(Float)
