"""Owns how gRPC messages of jobs and their history become the shapes of REST, and back. Pure.

It must not know rules: one set of shapes and services reads both wires.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import ListValue, Struct

from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2 as pb
from tunesmith_server.error_rendering import read_shape
from tunesmith_server.fine_tunes.history_schemas import CheckpointObject, EventObject, MetricsObject
from tunesmith_server.fine_tunes.integration_shapes import Integration
from tunesmith_server.fine_tunes.method_shapes import Hyperparameters
from tunesmith_server.fine_tunes.schemas import (
    CreateFineTune,
    FineTuneObject,
    JobError,
    Preflight,
    TrainingObject,
)
from tunesmith_server.metadata import read_metadata
from tunesmith_server.structs import plain_object


def create_body(request: pb.CreateFineTuneRequest) -> CreateFineTune:
    """The request in the shape that REST has; raises InvalidRequestError."""
    body: dict[str, Any] = {
        "model": request.model,
        "training_file": request.training_file,
        "validation_file": request.validation_file or None,
        "suffix": request.suffix or None,
        "seed": request.seed if request.HasField("seed") else None,
        "metadata": dict(request.metadata) or None,
        "integrations": [_tagged(each) for each in request.integrations] or None,
        "method": _method(request),
        "hyperparameters": _fields(request.hyperparameters),
        "training": _fields(request.training),
        "scheduling": _fields(request.scheduling),
        "auto_start": request.auto_start if request.HasField("auto_start") else True,
    }
    return read_shape(CreateFineTune, body)


def metadata_filter(request: pb.ListFineTunesRequest) -> dict[str, str] | None:
    """As repository.list_page wants it; raises InvalidRequestError."""
    if request.without_metadata:
        return {}
    return read_metadata(request.metadata) or None


def job(shown: FineTuneObject) -> pb.FineTune:
    """A job as gRPC clients see it."""
    message = pb.FineTune(
        id=shown.id,
        created_at=shown.created_at,
        finished_at=shown.finished_at,
        model=shown.model,
        fine_tuned_model=shown.fine_tuned_model,
        status=shown.status,
        error=None if shown.error is None else job_error(shown.error),
        hyperparameters=hyperparameters(shown.hyperparameters),
        training=training(shown.training),
        training_file=shown.training_file,
        validation_file=shown.validation_file,
        result_files=shown.result_files,
        trained_tokens=shown.trained_tokens,
        seed=shown.seed,
        suffix=shown.user_provided_suffix or "",
        metadata=shown.metadata or {},
        integrations=[_integration(each) for each in shown.integrations or ()],
        estimated_finish=shown.estimated_finish,
        method=shown.method.type,
        scheduling=pb.SchedulingOptions(**_numbers(shown.scheduling.model_dump())),
        auto_start=shown.auto_start,
        queue_position=shown.queue_position,
    )
    if shown.preflight is not None:
        message.preflight.CopyFrom(_preflight(shown.preflight))
    if shown.evaluation is not None:
        message.evaluation.update(shown.evaluation.model_dump())
    return message


def job_error(error: JobError) -> pb.Error:
    """Why a job failed."""
    return pb.Error(code=error.code, message=error.message, param=error.param)


def hyperparameters(numbers: Hyperparameters) -> pb.Hyperparameters:
    """A number that is "auto" is left unset."""
    return pb.Hyperparameters(**_numbers(numbers.model_dump()))


def training(options: TrainingObject) -> pb.Training:
    """A number that is "auto" is left unset."""
    return pb.Training(**_numbers(options.model_dump()))


def event(shown: EventObject) -> pb.Event:
    """One line of the history."""
    return pb.Event(
        id=shown.id,
        created_at=shown.created_at,
        level=shown.level,
        message=shown.message,
        type=shown.type,
        data=None if shown.data is None else ParseDict(shown.data, Struct()),
    )


def checkpoint(shown: CheckpointObject) -> pb.Checkpoint:
    """A checkpoint."""
    return pb.Checkpoint(
        id=shown.id,
        created_at=shown.created_at,
        fine_tune_id=shown.fine_tuning_job_id,
        fine_tuned_model_checkpoint=shown.fine_tuned_model_checkpoint,
        step_number=shown.step_number,
        metrics=shown.metrics,
    )


def step_metrics(shown: MetricsObject) -> pb.StepMetrics:
    """Measures of one step; those that were not taken are left unset."""
    return pb.StepMetrics(**shown.model_dump(exclude={"object"}, exclude_none=True))


def list_value(items: list[Any]) -> ListValue:
    """A list of JSON values."""
    values = ListValue()
    values.extend(items)
    return values


def _method(request: pb.CreateFineTuneRequest) -> dict[str, Any] | None:
    if request.HasField("method_options"):
        return _tagged(request.method_options)
    return {"type": request.method} if request.method else None


def _tagged(message: pb.Method | pb.Integration) -> dict[str, Any]:
    """`{"type": "dpo", "dpo": {…}}`: OpenAI's way to name a kind and give its options."""
    options = {message.type: plain_object(message.options)} if message.HasField("options") else {}
    return {**options, "type": message.type}


def _integration(shown: Integration) -> pb.Integration:
    given = shown.model_dump(exclude_none=True)
    return pb.Integration(type=shown.type, options=ParseDict(given[shown.type], Struct()))


def _fields(message: pb.Hyperparameters | pb.Training | pb.SchedulingOptions) -> dict[str, Any]:
    return {
        field.name: list(value) if field.is_repeated else value  # REST has plain lists
        for field, value in message.ListFields()
    }


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value == "auto" else value for name, value in values.items()}


def _preflight(found: Preflight) -> pb.Preflight:
    return pb.Preflight(
        counts=None if found.counts is None else ParseDict(found.counts, Struct()),
        findings=list_value(found.findings),
        memory=None if found.memory is None else ParseDict(found.memory, Struct()),
        seconds=found.seconds,
        rejects_file=found.rejects_file,
    )
