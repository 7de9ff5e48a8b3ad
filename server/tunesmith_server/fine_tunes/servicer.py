"""Owns the gRPC view of jobs and their history, the twin of endpoints.py.

It must not know rules or SQL; the services decide.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2 as pb
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2_grpc
from tunesmith_server.auth import Authenticator, Principal, authorization_of
from tunesmith_server.errors import UnavailableError
from tunesmith_server.fine_tunes import messages
from tunesmith_server.fine_tunes.history import HistoryService
from tunesmith_server.fine_tunes.logs import DEFAULT_TAIL_BYTES, RunLogs
from tunesmith_server.fine_tunes.model_limits import ModelLimitsService
from tunesmith_server.fine_tunes.service import FineTunesService

Context = grpc.aio.ServicerContext[Any, Any]


class FineTunesServicer(fine_tunes_pb2_grpc.FineTunesServiceServicer):
    """FineTunesService for API keys."""

    def __init__(
        self,
        service: FineTunesService,
        history: HistoryService,
        logs: RunLogs,
        limits: ModelLimitsService,
        authenticator: Authenticator,
    ) -> None:
        self._service = service
        self._history = history
        self._logs = logs
        self._limits = limits
        self._authenticator = authenticator

    async def CreateFineTune(  # noqa: N802
        self, request: pb.CreateFineTuneRequest, context: Context
    ) -> pb.CreateFineTuneResponse:
        """Makes a job; `request_id` is what the Idempotency-Key is on REST."""
        principal = await self._principal(context)
        job = await self._service.create(principal, messages.create_body(request), request.request_id or None)
        return pb.CreateFineTuneResponse(fine_tune=messages.job(job))

    async def GetFineTune(  # noqa: N802
        self, request: pb.GetFineTuneRequest, context: Context
    ) -> pb.GetFineTuneResponse:
        """One job."""
        principal = await self._principal(context)
        return pb.GetFineTuneResponse(fine_tune=messages.job(await self._service.get(principal, request.id)))

    async def ListFineTunes(  # noqa: N802
        self, request: pb.ListFineTunesRequest, context: Context
    ) -> pb.ListFineTunesResponse:
        """Jobs, newest first."""
        principal = await self._principal(context)
        page = await self._service.list(
            principal,
            after=request.after or None,
            limit=request.limit or 20,
            metadata=messages.metadata_filter(request),
        )
        return pb.ListFineTunesResponse(fine_tunes=[messages.job(job) for job in page.data], has_more=page.has_more)

    async def CancelFineTune(  # noqa: N802
        self, request: pb.CancelFineTuneRequest, context: Context
    ) -> pb.CancelFineTuneResponse:
        """Gives a job up."""
        principal = await self._principal(context)
        return pb.CancelFineTuneResponse(fine_tune=messages.job(await self._service.cancel(principal, request.id)))

    async def PauseFineTune(  # noqa: N802
        self, request: pb.PauseFineTuneRequest, context: Context
    ) -> pb.PauseFineTuneResponse:
        """Has a job wait."""
        principal = await self._principal(context)
        return pb.PauseFineTuneResponse(fine_tune=messages.job(await self._service.pause(principal, request.id)))

    async def ResumeFineTune(  # noqa: N802
        self, request: pb.ResumeFineTuneRequest, context: Context
    ) -> pb.ResumeFineTuneResponse:
        """Lets a paused job go on."""
        principal = await self._principal(context)
        return pb.ResumeFineTuneResponse(fine_tune=messages.job(await self._service.resume(principal, request.id)))

    async def ListEvents(  # noqa: N802
        self, request: pb.ListEventsRequest, context: Context
    ) -> pb.ListEventsResponse:
        """A job's history, newest first."""
        principal = await self._principal(context)
        page = await self._history.list_events(
            principal, request.fine_tune_id, after=request.after or None, limit=request.limit or 20
        )
        return pb.ListEventsResponse(events=[messages.event(event) for event in page.data], has_more=page.has_more)

    async def WatchEvents(  # noqa: N802
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        """A job's history, oldest first, until it has ended; UNAVAILABLE when the server stops before."""
        principal = await self._principal(context)
        batches = await self._history.follow_events(principal, request.fine_tune_id, after=request.after or None)
        async for batch in batches:
            for event in batch:
                yield pb.WatchEventsResponse(event=messages.event(event))
        if self._history.feed.stopped:
            message = "The server stops. Watch again after the last event that you have."
            raise UnavailableError("server_stopping", message)

    async def ListCheckpoints(  # noqa: N802
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsResponse:
        """A job's checkpoints, newest first."""
        principal = await self._principal(context)
        page = await self._history.list_checkpoints(
            principal, request.fine_tune_id, after=request.after or None, limit=request.limit or 10
        )
        return pb.ListCheckpointsResponse(
            checkpoints=[messages.checkpoint(each) for each in page.data], has_more=page.has_more
        )

    async def ListMetrics(  # noqa: N802
        self, request: pb.ListMetricsRequest, context: Context
    ) -> pb.ListMetricsResponse:
        """Measures of a job's steps, first step first."""
        principal = await self._principal(context)
        page = await self._history.list_metrics(
            principal, request.fine_tune_id, after=request.after, limit=request.limit or 100
        )
        return pb.ListMetricsResponse(
            metrics=[messages.step_metrics(each) for each in page.data], has_more=page.has_more
        )

    async def ReadLog(self, request: pb.ReadLogRequest, context: Context) -> pb.ReadLogResponse:  # noqa: N802
        """The end of what a run wrote."""
        principal = await self._principal(context)
        text = await self._logs.read(
            principal,
            request.fine_tune_id,
            attempt=request.attempt if request.HasField("attempt") else None,
            tail_bytes=request.tail_bytes or DEFAULT_TAIL_BYTES,
        )
        return pb.ReadLogResponse(text=text)

    async def ListModelLimits(  # noqa: N802
        self, request: pb.ListModelLimitsRequest, context: Context
    ) -> pb.ListModelLimitsResponse:
        """What each base model takes."""
        limits = await self._limits.list(await self._principal(context))
        shown = [pb.ModelLimits(**each.model_dump(exclude={"object"})) for each in limits]
        return pb.ListModelLimitsResponse(limits=shown)

    async def _principal(self, context: Context) -> Principal:
        return await self._authenticator.principal(authorization_of(context))
