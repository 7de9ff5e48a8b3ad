"""Owns the REST routes of jobs.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request

from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.fine_tunes.schemas import (
    CheckpointPage,
    CreateFineTune,
    EventPage,
    FineTuneObject,
    FineTunePage,
    check_metadata,
)
from tunesmith_server.fine_tunes.service import FineTunesService
from tunesmith_server.http_auth import CurrentPrincipal


def create_router(service: FineTunesService) -> APIRouter:
    """/v1/fine_tuning/jobs and what lies below."""
    router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

    @router.post("")
    async def create(
        body: CreateFineTune, principal: CurrentPrincipal, idempotency_key: Annotated[str | None, Header()] = None
    ) -> FineTuneObject:
        return await service.create(principal, body, idempotency_key)

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

    @router.get("/{job_id}/events")
    async def list_events(
        job_id: str, principal: CurrentPrincipal, after: str | None = None, limit: int = 20
    ) -> EventPage:
        return await service.list_events(principal, job_id, after=after, limit=limit)

    @router.get("/{job_id}/checkpoints")
    async def list_checkpoints(
        job_id: str, principal: CurrentPrincipal, after: str | None = None, limit: int = 10
    ) -> CheckpointPage:
        return await service.list_checkpoints(principal, job_id, after=after, limit=limit)

    return router


def _metadata_filter(request: Request) -> dict[str, str] | None:
    """`metadata[k]=v` pairs of the query; `metadata=null` selects jobs without metadata."""
    if request.query_params.get("metadata") == "null":
        return {}
    pairs = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    try:
        return check_metadata(pairs) or None
    except ValueError as error:
        raise InvalidRequestError("invalid_value", f"`metadata`: {error}.", param="metadata") from error
