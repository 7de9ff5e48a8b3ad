"""Owns the REST routes of jobs and of their history.

It must not know rules or SQL; the services decide.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from starlette.responses import PlainTextResponse

from tunesmith_server.fine_tunes.event_stream import MEDIA_TYPE, event_stream, with_cursor
from tunesmith_server.fine_tunes.history import HistoryService
from tunesmith_server.fine_tunes.history_schemas import CheckpointPage, EventPage, MetricsPage
from tunesmith_server.fine_tunes.logs import DEFAULT_TAIL_BYTES, RunLogs
from tunesmith_server.fine_tunes.model_limits import ModelLimitsPage, ModelLimitsService
from tunesmith_server.fine_tunes.schemas import CreateFineTune, FineTuneObject, FineTunePage
from tunesmith_server.fine_tunes.service import FineTunesService
from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.metadata import metadata_of

_PREFIX = "/v1/fine_tuning/jobs"


def create_router(service: FineTunesService) -> APIRouter:
    """/v1/fine_tuning/jobs: what is done with jobs."""
    router = APIRouter(prefix=_PREFIX, tags=["fine-tuning"])

    @router.post("")
    async def create(
        request: Request,
        body: CreateFineTune,
        principal: CurrentPrincipal,
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> FineTuneObject:
        return await service.create(principal, body, idempotency_key, repeated=_is_repeated(request))

    @router.get("")
    async def list_jobs(
        request: Request, principal: CurrentPrincipal, after: str | None = None, limit: int = 20
    ) -> FineTunePage:
        return await service.list(principal, after=after, limit=limit, metadata=_metadata_filter(request))

    @router.get("/{job_id}")
    async def get(job_id: str, principal: CurrentPrincipal) -> FineTuneObject:
        return await service.get(principal, job_id)

    @router.post("/{job_id}/cancel")
    async def cancel(job_id: str, principal: CurrentPrincipal) -> FineTuneObject:
        return await service.cancel(principal, job_id)

    @router.post("/{job_id}/pause")
    async def pause(job_id: str, principal: CurrentPrincipal) -> FineTuneObject:
        return await service.pause(principal, job_id)

    @router.post("/{job_id}/resume")
    async def resume(job_id: str, principal: CurrentPrincipal) -> FineTuneObject:
        return await service.resume(principal, job_id)

    return router


def create_history_router(history: HistoryService, logs: RunLogs) -> APIRouter:
    """/v1/fine_tuning/jobs/{id}: what is read of a job's history."""
    router = APIRouter(prefix=f"{_PREFIX}/{{job_id}}", tags=["fine-tuning"])

    @router.get("/events", response_model=EventPage, responses={200: {"content": {MEDIA_TYPE: {}}}})
    async def list_events(
        job_id: str,
        principal: CurrentPrincipal,
        after: str | None = None,
        limit: int = 20,
        stream: bool = False,
        accept: Annotated[str, Header()] = "",
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> EventPage | Response:
        """A page, newest first; or with `stream`, all events after `Last-Event-ID` or `after`, as they happen."""
        if not stream and MEDIA_TYPE not in accept:
            return await history.list_events(principal, job_id, after=after, limit=limit)
        batches = await history.follow_events(principal, job_id, after=last_event_id or after)
        return event_stream(batches, with_cursor, lambda: history.feed.stopped)

    @router.get("/checkpoints")
    async def list_checkpoints(
        job_id: str, principal: CurrentPrincipal, after: str | None = None, limit: int = 10
    ) -> CheckpointPage:
        return await history.list_checkpoints(principal, job_id, after=after, limit=limit)

    @router.get("/metrics")
    async def list_metrics(job_id: str, principal: CurrentPrincipal, after: int = 0, limit: int = 100) -> MetricsPage:
        return await history.list_metrics(principal, job_id, after=after, limit=limit)

    @router.get("/logs", response_class=PlainTextResponse)
    async def read_log(
        job_id: str,
        principal: CurrentPrincipal,
        attempt: int | None = None,
        tail_bytes: int = DEFAULT_TAIL_BYTES,
    ) -> PlainTextResponse:
        text = await logs.read(principal, job_id, attempt=attempt, tail_bytes=tail_bytes)
        return PlainTextResponse(text, headers={"x-content-type-options": "nosniff"})

    return router


def create_limits_router(limits: ModelLimitsService) -> APIRouter:
    """/v1/fine_tuning/model_limits."""
    router = APIRouter(tags=["fine-tuning"])

    @router.get("/v1/fine_tuning/model_limits")
    async def list_model_limits(principal: CurrentPrincipal) -> ModelLimitsPage:
        return ModelLimitsPage(data=await limits.list(principal))

    return router


def _is_repeated(request: Request) -> bool:
    """Whether an OpenAI client says that it sends the same call again: it sends no idempotency key."""
    count = request.headers.get("x-stainless-retry-count", "0")
    return count.isascii() and count.isdigit() and int(count[:9]) > 0


def _metadata_filter(request: Request) -> dict[str, str] | None:
    """`metadata[k]=v` pairs of the query; `metadata=null` selects jobs without metadata."""
    if request.query_params.get("metadata") == "null":
        return {}
    return metadata_of(request.query_params) or None
