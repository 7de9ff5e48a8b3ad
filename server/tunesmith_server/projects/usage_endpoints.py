"""Owns the REST routes of usage: OpenAI's for the whole installation, ours for the caller's project.

It must not know rules or SQL; usage.py decides.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.projects.usage import UsagePage, UsageQuery, UsageService, Width
from tunesmith_server.projects.usage_repository import Group, UsageFilter, UsageSum
from tunesmith_server.projects.usage_schemas import (
    CompletionsBucket,
    CompletionsPage,
    CompletionsResult,
    UsageBucket,
    UsageList,
    UsageResult,
)

Time = Annotated[int, Query(ge=0, lt=10**11)]
OptionalTime = Annotated[int | None, Query(ge=0, lt=10**11)]
Many = list[str]
ByGroup = Literal["project_id", "api_key_id", "model"]


def create_router(service: UsageService) -> APIRouter:
    """/v1/usage and /v1/organization/usage/completions."""
    router = APIRouter(tags=["usage"])

    @router.get("/v1/usage")
    async def get_usage(
        principal: CurrentPrincipal,
        start_time: Time,
        end_time: OptionalTime = None,
        bucket_width: Width = "1d",
        limit: int | None = None,
        page: str | None = None,
    ) -> UsageList:
        which = UsageFilter(project_ids=(principal.project_id,))
        groups: tuple[Group, ...] = ("kind", "api_key_id", "model")
        query = UsageQuery(start_time, end_time, bucket_width, limit, page, groups, which)
        return _usage(await service.read(query))

    @router.get("/v1/organization/usage/completions")
    async def get_completions_usage(
        *,
        _principal: CurrentPrincipal,
        start_time: Time,
        group_by: Annotated[list[ByGroup], Query(alias="group_by[]", default_factory=list)],
        project_ids: Annotated[Many, Query(alias="project_ids[]", default_factory=list)],
        api_key_ids: Annotated[Many, Query(alias="api_key_ids[]", default_factory=list)],
        models: Annotated[Many, Query(alias="models[]", default_factory=list)],
        # As people write them who use no client of OpenAI's.
        plain_group_by: Annotated[list[ByGroup], Query(alias="group_by", default_factory=list)],
        plain_project_ids: Annotated[Many, Query(alias="project_ids", default_factory=list)],
        plain_api_key_ids: Annotated[Many, Query(alias="api_key_ids", default_factory=list)],
        plain_models: Annotated[Many, Query(alias="models", default_factory=list)],
        end_time: OptionalTime = None,
        bucket_width: Width = "1d",
        limit: int | None = None,
        page: str | None = None,
    ) -> CompletionsPage:
        which = UsageFilter(
            ("inference",), project_ids + plain_project_ids, api_key_ids + plain_api_key_ids, models + plain_models
        )
        groups = tuple(dict.fromkeys(group_by + plain_group_by))
        query = UsageQuery(start_time, end_time, bucket_width, limit, page, groups, which)
        return _completions(await service.read(query))

    return router


def _usage(page: UsagePage) -> UsageList:
    data = [
        UsageBucket(
            start_time=bucket.start_time, end_time=bucket.end_time, results=[_result(one) for one in bucket.sums]
        )
        for bucket in page.buckets
    ]
    return UsageList(data=data, has_more=page.next_page is not None, next_page=page.next_page)


def _result(one: UsageSum) -> UsageResult:
    return UsageResult(
        kind=one.group["kind"],
        api_key_id=one.group["api_key_id"],
        model=one.group["model"],
        num_requests=one.requests,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        device_seconds=one.device_seconds,
    )


def _completions(page: UsagePage) -> CompletionsPage:
    data = [
        CompletionsBucket(
            start_time=bucket.start_time,
            end_time=bucket.end_time,
            results=[_completions_result(one) for one in bucket.sums],
        )
        for bucket in page.buckets
    ]
    return CompletionsPage(data=data, has_more=page.next_page is not None, next_page=page.next_page)


def _completions_result(one: UsageSum) -> CompletionsResult:
    return CompletionsResult(
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        num_model_requests=one.requests,
        project_id=one.group.get("project_id"),
        api_key_id=one.group.get("api_key_id"),
        model=one.group.get("model"),
    )
