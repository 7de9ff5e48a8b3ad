"""Owns the REST routes of graders.

It must not know rules; service.py decides. What a grading model is asked goes out with the caller's own key.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from tunesmith_server.graders.schemas import RunGrader, RunResult, ValidatedGrader, ValidateGrader
from tunesmith_server.graders.service import GradersService
from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.inference_proxy import InferenceProxy


def create_router(service: GradersService, proxy: InferenceProxy) -> APIRouter:
    """Routes under /v1/fine_tuning/alpha/graders."""
    router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["graders"])

    @router.post("/validate")
    async def validate(body: ValidateGrader, principal: CurrentPrincipal) -> ValidatedGrader:
        return await service.validate(body)

    @router.post("/run")
    async def run(body: RunGrader, request: Request, principal: CurrentPrincipal) -> RunResult:
        return await service.run(body, proxy.chat_for(request.headers.get("authorization")))

    return router
