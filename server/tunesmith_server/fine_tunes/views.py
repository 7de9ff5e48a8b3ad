"""Owns how rows become the objects that users see.

It must not know transports or how rows are found.
"""

from __future__ import annotations

from typing import Any

from tunesmith_server.db.tables import CheckpointRow, EventRow, FineTuneRow
from tunesmith_server.fine_tunes.schemas import (
    CheckpointObject,
    Evaluation,
    EventObject,
    FineTuneObject,
    Hyperparameters,
    JobError,
    MethodObject,
    Progress,
    SupervisedMethod,
    TrainingObject,
)
from tunesmith_server.fine_tunes.state import TERMINAL, State, wire_status


def status(job: FineTuneRow) -> str:
    """The word that clients see; a cancellation that was asked for is final, though its run may still be ending."""
    return wire_status(State.CANCELLED if job.cancel_requested else State(job.state))


def fine_tune(job: FineTuneRow) -> FineTuneObject:
    """The job with its numbers as asked for, or as resolved once the data was read."""
    numbers: dict[str, Any] = job.resolved or job.requested
    hyperparameters = Hyperparameters(
        **{name: numbers[name] for name in Hyperparameters.model_fields if numbers.get(name) is not None}
    )
    ended = job.state in TERMINAL or job.cancel_requested
    return FineTuneObject(
        id=job.id,
        created_at=job.created_at,
        finished_at=job.finished_at,
        model=job.base_model_id,
        fine_tuned_model=job.fine_tuned_model,
        organization_id=job.project_id,
        status=status(job),
        error=_error(job),
        hyperparameters=hyperparameters,
        method=MethodObject(supervised=SupervisedMethod(hyperparameters=hyperparameters)),
        training=_training(job.requested["weights"], numbers),
        training_file=job.training_file_id,
        validation_file=job.validation_file_id,
        result_files=job.result_file_ids,
        trained_tokens=job.trained_tokens,
        seed=job.seed,
        user_provided_suffix=job.suffix,
        metadata=job.user_metadata,
        estimated_finish=None if ended or not job.progress else job.progress["estimated_finish"],
        progress=Progress(**job.progress) if job.progress and not ended else None,
        evaluation=Evaluation(**job.evaluation) if job.evaluation else None,
    )


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


def _error(job: FineTuneRow) -> JobError | None:
    if job.error_code is None:
        return None
    return JobError(code=job.error_code, message=job.error_message or "", param=job.error_param)


def _training(weights: str, numbers: dict[str, Any]) -> TrainingObject:
    if weights == "full":
        return TrainingObject(weights="full", lora_rank=None, lora_alpha=None)
    return TrainingObject(
        weights="lora", lora_rank=numbers.get("lora_rank", "auto"), lora_alpha=numbers.get("lora_alpha", "auto")
    )
