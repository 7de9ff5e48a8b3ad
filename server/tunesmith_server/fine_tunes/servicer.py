"""Owns the gRPC view of jobs, the twin of endpoints.py.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from pydantic import ValidationError

from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2 as pb
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2_grpc
from tunesmith_server.auth import Authenticator, Principal, authorization_of
from tunesmith_server.error_rendering import from_validation
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.fine_tunes.schemas import (
    CheckpointObject,
    CreateFineTune,
    EventObject,
    FineTuneObject,
    Hyperparameters,
    TrainingObject,
    check_metadata,
)
from tunesmith_server.fine_tunes.service import FineTunesService

Context = grpc.aio.ServicerContext[Any, Any]


class FineTunesServicer(fine_tunes_pb2_grpc.FineTunesServiceServicer):
    """FineTunesService for API keys."""

    def __init__(self, service: FineTunesService, authenticator: Authenticator) -> None:
        self._service = service
        self._authenticator = authenticator

    async def CreateFineTune(  # noqa: N802
        self, request: pb.CreateFineTuneRequest, context: Context
    ) -> pb.CreateFineTuneResponse:
        """Makes a job; `request_id` is what the Idempotency-Key is on REST."""
        principal = await self._principal(context)
        job = await self._service.create(principal, _create_body(request), request.request_id or None)
        return pb.CreateFineTuneResponse(fine_tune=_job(job))

    async def GetFineTune(  # noqa: N802
        self, request: pb.GetFineTuneRequest, context: Context
    ) -> pb.GetFineTuneResponse:
        """One job."""
        principal = await self._principal(context)
        return pb.GetFineTuneResponse(fine_tune=_job(await self._service.get(principal, request.id)))

    async def ListFineTunes(  # noqa: N802
        self, request: pb.ListFineTunesRequest, context: Context
    ) -> pb.ListFineTunesResponse:
        """Jobs, newest first."""
        principal = await self._principal(context)
        page = await self._service.list(
            principal, after=request.after or None, limit=request.limit or 20, metadata=_metadata_filter(request)
        )
        return pb.ListFineTunesResponse(fine_tunes=[_job(job) for job in page.data], has_more=page.has_more)

    async def CancelFineTune(  # noqa: N802
        self, request: pb.CancelFineTuneRequest, context: Context
    ) -> pb.CancelFineTuneResponse:
        """Gives a job up."""
        principal = await self._principal(context)
        return pb.CancelFineTuneResponse(fine_tune=_job(await self._service.cancel(principal, request.id)))

    async def ListEvents(  # noqa: N802
        self, request: pb.ListEventsRequest, context: Context
    ) -> pb.ListEventsResponse:
        """A job's history, newest first."""
        principal = await self._principal(context)
        page = await self._service.list_events(
            principal, request.fine_tune_id, after=request.after or None, limit=request.limit or 20
        )
        return pb.ListEventsResponse(events=[_event(event) for event in page.data], has_more=page.has_more)

    async def ListCheckpoints(  # noqa: N802
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsResponse:
        """A job's checkpoints, newest first."""
        principal = await self._principal(context)
        page = await self._service.list_checkpoints(
            principal, request.fine_tune_id, after=request.after or None, limit=request.limit or 10
        )
        return pb.ListCheckpointsResponse(
            checkpoints=[_checkpoint(checkpoint) for checkpoint in page.data], has_more=page.has_more
        )

    async def _principal(self, context: Context) -> Principal:
        return await self._authenticator.principal(authorization_of(context))


def _create_body(request: pb.CreateFineTuneRequest) -> CreateFineTune:
    """The request in the shape that REST has, so that one set of rules reads both."""
    body: dict[str, Any] = {
        "model": request.model,
        "training_file": request.training_file,
        "validation_file": request.validation_file or None,
        "suffix": request.suffix or None,
        "seed": request.seed if request.HasField("seed") else None,
        "metadata": dict(request.metadata) or None,
        "method": {"type": request.method} if request.method else None,
        "hyperparameters": {field.name: value for field, value in request.hyperparameters.ListFields()},
        "training": {field.name: value for field, value in request.training.ListFields()},
    }
    try:
        return CreateFineTune.model_validate(body)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False), body) from error


def _metadata_filter(request: pb.ListFineTunesRequest) -> dict[str, str] | None:
    try:
        return check_metadata(dict(request.metadata)) or None
    except ValueError as error:
        raise InvalidRequestError("invalid_value", f"`metadata`: {error}.", param="metadata") from error


def _job(job: FineTuneObject) -> pb.FineTune:
    message = pb.FineTune(
        id=job.id,
        created_at=job.created_at,
        finished_at=job.finished_at,
        model=job.model,
        fine_tuned_model=job.fine_tuned_model,
        status=job.status,
        hyperparameters=_hyperparameters(job.hyperparameters),
        training=_training(job.training),
        training_file=job.training_file,
        validation_file=job.validation_file,
        result_files=job.result_files,
        trained_tokens=job.trained_tokens,
        seed=job.seed,
        suffix=job.user_provided_suffix or "",
        metadata=job.metadata or {},
        estimated_finish=job.estimated_finish,
        method=job.method.type,
    )
    if job.error is not None:
        message.error.CopyFrom(pb.Error(code=job.error.code, message=job.error.message, param=job.error.param))
    return message


def _hyperparameters(numbers: Hyperparameters) -> pb.Hyperparameters:
    return pb.Hyperparameters(
        n_epochs=None if numbers.n_epochs == "auto" else numbers.n_epochs,
        batch_size=None if numbers.batch_size == "auto" else numbers.batch_size,
        learning_rate_multiplier=(
            None if numbers.learning_rate_multiplier == "auto" else numbers.learning_rate_multiplier
        ),
    )


def _training(training: TrainingObject) -> pb.Training:
    return pb.Training(
        weights=training.weights,
        lora_rank=None if training.lora_rank == "auto" else training.lora_rank,
        lora_alpha=None if training.lora_alpha == "auto" else training.lora_alpha,
    )


def _event(event: EventObject) -> pb.Event:
    return pb.Event(
        id=event.id,
        created_at=event.created_at,
        level=event.level,
        message=event.message,
        type=event.type,
        data=None if event.data is None else ParseDict(event.data, Struct()),
    )


def _checkpoint(checkpoint: CheckpointObject) -> pb.Checkpoint:
    return pb.Checkpoint(
        id=checkpoint.id,
        created_at=checkpoint.created_at,
        fine_tune_id=checkpoint.fine_tuning_job_id,
        fine_tuned_model_checkpoint=checkpoint.fine_tuned_model_checkpoint,
        step_number=checkpoint.step_number,
        metrics=checkpoint.metrics,
    )
