"""Owns the REST routes of OpenAI's first fine-tuning API, which clients up to openai 1.7 know.

It must not know rules or SQL; legacy.py decides. There is no gRPC twin: new clients have the new API.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response

from tunesmith_server.fine_tunes.event_stream import MEDIA_TYPE, event_stream
from tunesmith_server.fine_tunes.history_schemas import EventObject
from tunesmith_server.fine_tunes.legacy import LegacyService, legacy_event
from tunesmith_server.fine_tunes.legacy_schemas import (
    CreateLegacyFineTune,
    LegacyEventList,
    LegacyFineTune,
    LegacyFineTuneList,
)
from tunesmith_server.http_auth import CurrentPrincipal


def create_router(service: LegacyService) -> APIRouter:
    """/v1/fine-tunes and what lies below."""
    router = APIRouter(prefix="/v1/fine-tunes", tags=["fine-tunes (legacy)"])

    @router.post("")
    async def create(
        body: CreateLegacyFineTune,
        principal: CurrentPrincipal,
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> LegacyFineTune:
        return await service.create(principal, body, idempotency_key)

    @router.get("")
    async def list_fine_tunes(principal: CurrentPrincipal) -> LegacyFineTuneList:
        return LegacyFineTuneList(data=await service.list(principal))

    @router.get("/{fine_tune_id}")
    async def get(fine_tune_id: str, principal: CurrentPrincipal) -> LegacyFineTune:
        return await service.get(principal, fine_tune_id)

    @router.post("/{fine_tune_id}/cancel")
    async def cancel(fine_tune_id: str, principal: CurrentPrincipal) -> LegacyFineTune:
        return await service.cancel(principal, fine_tune_id)

    @router.get(
        "/{fine_tune_id}/events", response_model=LegacyEventList, responses={200: {"content": {MEDIA_TYPE: {}}}}
    )
    async def list_events(
        fine_tune_id: str, principal: CurrentPrincipal, stream: bool = False
    ) -> LegacyEventList | Response:
        """The history so far, or with `stream`, as it happens."""
        if not stream:
            return LegacyEventList(data=(await service.get(principal, fine_tune_id)).events)
        return event_stream(await service.follow_events(principal, fine_tune_id), _data_only, lambda: service.stopped)

    return router


def _data_only(event: EventObject) -> bytes:
    """Old clients read nothing but `data:` lines."""
    return f"data: {legacy_event(event).model_dump_json()}\n\n".encode()
