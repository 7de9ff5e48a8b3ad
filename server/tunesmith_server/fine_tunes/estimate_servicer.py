"""Owns the gRPC view of estimates, the twin of estimate_endpoints.py.

It must not know rules or SQL; estimates.py decides.
"""

from __future__ import annotations

from typing import Any

import grpc.aio

from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2 as pb
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2_grpc
from tunesmith_server.auth import Authenticator, authorization_of
from tunesmith_server.fine_tunes import messages
from tunesmith_server.fine_tunes.estimate_schemas import EstimateObject
from tunesmith_server.fine_tunes.estimates import DEFAULT_WAIT_SECONDS, EstimatesService

Context = grpc.aio.ServicerContext[Any, Any]


class EstimatesServicer(fine_tunes_pb2_grpc.EstimatesServiceServicer):
    """EstimatesService for API keys."""

    def __init__(self, service: EstimatesService, authenticator: Authenticator) -> None:
        self._service = service
        self._authenticator = authenticator

    async def CreateEstimate(  # noqa: N802
        self, request: pb.CreateEstimateRequest, context: Context
    ) -> pb.CreateEstimateResponse:
        """Validates what a job would be made of, and tells what it would take."""
        principal = await self._authenticator.principal(authorization_of(context))
        wait_seconds = request.wait_seconds if request.HasField("wait_seconds") else DEFAULT_WAIT_SECONDS
        shown = await self._service.create(principal, messages.create_body(request.fine_tune), wait_seconds)
        return pb.CreateEstimateResponse(estimate=_message(shown))

    async def GetEstimate(  # noqa: N802
        self, request: pb.GetEstimateRequest, context: Context
    ) -> pb.GetEstimateResponse:
        """One estimate as it is now."""
        principal = await self._authenticator.principal(authorization_of(context))
        return pb.GetEstimateResponse(estimate=_message(await self._service.get(principal, request.id)))


def _message(shown: EstimateObject) -> pb.Estimate:
    return pb.Estimate(
        id=shown.id,
        created_at=shown.created_at,
        status=shown.status,
        error=None if shown.error is None else messages.job_error(shown.error),
        model=shown.model,
        rows=shown.rows,
        tokens=shown.tokens,
        trained_tokens=shown.trained_tokens,
        steps=shown.steps,
        hyperparameters=messages.hyperparameters(shown.hyperparameters),
        training=messages.training(shown.training),
        resolved=[pb.ResolvedSetting(**each.model_dump()) for each in shown.resolved],
        memory=None if shown.memory is None else pb.EstimatedMemory(**shown.memory.model_dump()),
        seconds=shown.seconds,
        queue=None if shown.queue is None else pb.EstimatedStart(**shown.queue.model_dump()),
        cost=None if shown.cost is None else pb.EstimatedCost(**shown.cost.model_dump()),
        findings=messages.list_value(shown.findings),
        rejects_file=shown.rejects_file,
    )
