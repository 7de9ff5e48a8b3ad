"""Owns the REST shapes of usage, as OpenAI's administration API has them, and our own view of one project.

It must not know rows or rules.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class CompletionsResult(BaseModel):
    """Inference of one group in one bucket; what was not grouped by is null."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    output_tokens: int
    num_model_requests: int
    project_id: str | None
    user_id: None = None
    api_key_id: str | None
    model: str | None
    batch: None = None


class CompletionsBucket(BaseModel):
    """Times are Unix seconds, the end is exclusive."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[CompletionsResult]


class CompletionsPage(BaseModel):
    """Buckets in order of time."""

    object: Literal["page"] = "page"
    data: list[CompletionsBucket]
    has_more: bool
    next_page: str | None


class UsageResult(BaseModel):
    """What one key used of one model: requests and tokens of inference, or jobs, trained tokens and device time."""

    object: Literal["usage.result"] = "usage.result"
    kind: str
    api_key_id: str
    model: str
    num_requests: int
    input_tokens: int
    output_tokens: int
    device_seconds: float


class UsageBucket(BaseModel):
    """Times are Unix seconds, the end is exclusive."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[UsageResult]


class UsageList(BaseModel):
    """Buckets in order of time."""

    object: Literal["page"] = "page"
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None
