"""Owns how rows become the objects that users see.

It must not know transports or how rows are found.
"""

from __future__ import annotations

from typing import Any

from tunesmith_server.db.tables import CheckpointRow, EventRow, FineTuneRow
from tunesmith_server.fine_tunes.history_schemas import CheckpointObject, EventObject
from tunesmith_server.fine_tunes.method_shapes import (
    ContinuedPretrainingMethod,
    DpoHyperparameters,
    DpoMethod,
    Hyperparameters,
    SupervisedMethod,
)
from tunesmith_server.fine_tunes.schemas import (
    ContinuedPretrainingObject,
    DpoObject,
    Evaluation,
    FineTuneObject,
    JobError,
    MethodObject,
    Preflight,
    Progress,
    SchedulingObject,
    SupervisedObject,
    TrainingObject,
)
from tunesmith_server.fine_tunes.state import TERMINAL, State, wire_status


def status(job: FineTuneRow) -> str:
    """The word that clients see; a cancellation that was asked for is final, though its run may still be ending."""
    return wire_status(State.CANCELLED if job.cancel_requested else State(job.state))


def tuned_name(job: FineTuneRow) -> str:
    """What the job's model is called: `ft:<base>:<project>:<suffix>:<id>`; without a suffix its place is empty."""
    return f"ft:{job.base_model_id}:{job.project_id}:{job.suffix or ''}:{job.name_id}"


def fine_tune(job: FineTuneRow, queue_position: int | None = None) -> FineTuneObject:
    """The job with its numbers as asked for, or as resolved once the data was read."""
    hyperparameters = hyperparameters_of(job)
    ended = job.state in TERMINAL or job.cancel_requested
    return FineTuneObject(
        id=job.id,
        created_at=job.created_at,
        finished_at=job.finished_at,
        model=model_name(job),
        fine_tuned_model=job.fine_tuned_model,
        organization_id=job.project_id,
        status=status(job),
        error=error(job),
        hyperparameters=hyperparameters,
        method=_method(hyperparameters, job.method),
        training=training_of(job),
        scheduling=_scheduling(job),
        auto_start=job.auto_start,
        queue_position=queue_position,
        training_file=job.training_file_id,
        validation_file=job.validation_file_id,
        result_files=job.result_file_ids,
        trained_tokens=job.trained_tokens,
        seed=job.seed,
        user_provided_suffix=job.suffix,
        metadata=job.user_metadata,
        integrations=job.integrations,
        estimated_finish=None if ended or not job.progress else job.progress["estimated_finish"],
        progress=Progress(**job.progress) if job.progress and not ended else None,
        preflight=_preflight(job),
        evaluation=Evaluation(**job.evaluation) if job.evaluation else None,
    )


def hyperparameters_of(job: FineTuneRow) -> Hyperparameters:
    """The numbers as asked for, or as resolved once the data was read."""
    numbers: dict[str, Any] = job.resolved or job.requested
    shape = DpoHyperparameters if job.method == "dpo" else Hyperparameters
    return shape(**{name: numbers[name] for name in shape.model_fields if numbers.get(name) is not None})


def model_name(job: FineTuneRow) -> str:
    """The model that the job starts from: a tuned one, or its base model."""
    return job.start_model or job.base_model_id


def training_of(job: FineTuneRow) -> TrainingObject:
    """Our own options as asked for, or as resolved once the data was read."""
    requested: dict[str, Any] = job.requested
    numbers: dict[str, Any] = job.resolved or requested
    lora = requested["weights"] == "lora"
    return TrainingObject(
        weights=requested["weights"],
        lora_rank=numbers.get("lora_rank", "auto") if lora else None,
        lora_alpha=numbers.get("lora_alpha", "auto") if lora else None,
        lora_targets=numbers.get("lora_targets") if lora else None,
        use_rslora=numbers.get("use_rslora", False) if lora else None,
        long_rows=requested.get("long_rows", "fail"),  # jobs of earlier releases have none
        early_stopping_patience=requested.get("early_stopping_patience", "auto"),
    )


def chooses_devices(job: FineTuneRow) -> bool:
    """Whether the job leaves its number of devices to the preflight; those of earlier releases say so by having one."""
    return "devices" not in job.requested and job.devices == 1


def error(job: FineTuneRow) -> JobError | None:
    """Why the job failed, or None."""
    if job.error_code is None:
        return None
    return JobError(code=job.error_code, message=job.error_message or "", param=job.error_param)


def event(row: EventRow) -> EventObject:
    """One line of the history."""
    return EventObject(
        id=row.id, created_at=row.created_at, level=row.level, message=row.message, type=row.type, data=row.data
    )


def checkpoint(row: CheckpointRow) -> CheckpointObject:
    """A checkpoint; measures that were not taken are left out."""
    return CheckpointObject(
        id=row.id,
        created_at=row.created_at,
        fine_tuning_job_id=row.job_id,
        fine_tuned_model_checkpoint=row.model_name,
        step_number=row.step,
        metrics={name: value for name, value in row.metrics.items() if value is not None},
    )


def _method(numbers: Hyperparameters, name: str) -> MethodObject:
    if isinstance(numbers, DpoHyperparameters):
        return DpoObject(dpo=DpoMethod(hyperparameters=numbers))
    if name == "continued_pretraining":
        return ContinuedPretrainingObject(continued_pretraining=ContinuedPretrainingMethod(hyperparameters=numbers))
    return SupervisedObject(supervised=SupervisedMethod(hyperparameters=numbers))


def _scheduling(job: FineTuneRow) -> SchedulingObject:
    return SchedulingObject(
        priority=job.priority,
        devices="auto" if job.resolved is None and chooses_devices(job) else job.devices,
        max_run_seconds=job.max_run_seconds,
        max_device_seconds=job.max_device_seconds,
    )


def _preflight(job: FineTuneRow) -> Preflight | None:
    if job.report is None:
        return None
    return Preflight(
        counts=job.report.get("counts"),
        findings=job.report.get("findings") or [],
        memory=job.report.get("memory"),
        seconds=job.report.get("seconds"),
        rejects_file=job.rejects_file_id,
    )
