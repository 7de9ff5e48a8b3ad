"""Owns the REST routes of estimates.

It must not know rules or SQL; estimates.py decides.
"""

from __future__ import annotations

from fastapi import APIRouter

from tunesmith_server.fine_tunes.estimate_schemas import EstimateObject
from tunesmith_server.fine_tunes.estimates import DEFAULT_WAIT_SECONDS, EstimatesService
from tunesmith_server.fine_tunes.schemas import CreateFineTune
from tunesmith_server.http_auth import CurrentPrincipal


def create_router(service: EstimatesService) -> APIRouter:
    """/v1/fine_tuning/estimates."""
    router = APIRouter(prefix="/v1/fine_tuning/estimates", tags=["fine-tuning"])

    @router.post("")
    async def create_estimate(
        body: CreateFineTune, principal: CurrentPrincipal, wait_seconds: float = DEFAULT_WAIT_SECONDS
    ) -> EstimateObject:
        return await service.create(principal, body, wait_seconds)

    @router.get("/{estimate_id}")
    async def get_estimate(estimate_id: str, principal: CurrentPrincipal) -> EstimateObject:
        return await service.get(principal, estimate_id)

    return router
