"""Owns the gRPC view of a run's calls.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

from typing import Any

import grpc.aio

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_proto.training.v1 import training_pb2_grpc
from tunesmith_server.auth import AttemptIdentity, Authenticator, authorization_of
from tunesmith_server.training.service import TrainingService

Context = grpc.aio.ServicerContext[Any, Any]


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """TrainingService for attempt tokens; each method is about the attempt that the token names."""

    def __init__(self, service: TrainingService, authenticator: Authenticator) -> None:
        self._service = service
        self._authenticator = authenticator

    async def GetSpec(self, request: pb.GetSpecRequest, context: Context) -> pb.GetSpecResponse:  # noqa: N802
        """What the run is to do."""
        return pb.GetSpecResponse(spec=await self._service.get_spec(self._attempt(context)))

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatResponse:  # noqa: N802
        """Renews the lease, delivers events and metrics, fetches the command."""
        return await self._service.heartbeat(self._attempt(context), request)

    async def CreateUploads(  # noqa: N802
        self, request: pb.CreateUploadsRequest, context: Context
    ) -> pb.CreateUploadsResponse:
        """Presigned PUTs under the attempt's prefix."""
        return await self._service.create_uploads(self._attempt(context), request)

    async def CommitCheckpoint(  # noqa: N802
        self, request: pb.CommitCheckpointRequest, context: Context
    ) -> pb.CommitCheckpointResponse:
        """Makes a checkpoint exist."""
        name = await self._service.commit_checkpoint(self._attempt(context), request)
        return pb.CommitCheckpointResponse(model_name=name)

    async def CompletePreflight(  # noqa: N802
        self, request: pb.CompletePreflightRequest, context: Context
    ) -> pb.CompletePreflightResponse:
        """Ends a preflight run."""
        await self._service.complete_preflight(self._attempt(context), request)
        return pb.CompletePreflightResponse()

    async def CompleteTraining(  # noqa: N802
        self, request: pb.CompleteTrainingRequest, context: Context
    ) -> pb.CompleteTrainingResponse:
        """Ends a training run."""
        name = await self._service.complete_training(self._attempt(context), request)
        return pb.CompleteTrainingResponse(model_name=name)

    async def CompleteImport(  # noqa: N802
        self, request: pb.CompleteImportRequest, context: Context
    ) -> pb.CompleteImportResponse:
        """Ends an import."""
        name = await self._service.complete_import(self._attempt(context), request)
        return pb.CompleteImportResponse(model_name=name)

    async def FailRun(self, request: pb.FailRunRequest, context: Context) -> pb.FailRunResponse:  # noqa: N802
        """Ends a run that cannot go on."""
        await self._service.fail_run(self._attempt(context), request)
        return pb.FailRunResponse()

    def _attempt(self, context: Context) -> AttemptIdentity:
        return self._authenticator.attempt(authorization_of(context))
