"""Owns the REST shapes of projects, keys and rate limits, as OpenAI's administration API has them, and our additions.

It must not know rows or rules.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Limit = Annotated[int, Field(strict=True)]


class QuotasObject(BaseModel):
    """Our addition: what the project may use; null is no limit."""

    max_jobs: int | None
    max_running: int | None
    max_storage_bytes: int | None
    max_device_seconds: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    share: float


class ProjectObject(BaseModel):
    """A project. `quotas` are what holds: its own, else the installation's. Times are Unix seconds."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]
    quotas: QuotasObject


class ProjectList(BaseModel):
    """A page of projects."""

    object: Literal["list"] = "list"
    data: list[ProjectObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class QuotasChange(BaseModel):
    """Quotas to set; null takes the project's own value away, so that the installation's default holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_jobs: Limit | None = None
    max_running: Limit | None = None
    max_storage_bytes: Limit | None = None
    max_device_seconds: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    share: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None


class CreateProject(BaseModel):
    """A new project. `id`, our addition, is its part of model names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    id: str | None = None
    quotas: QuotasChange = QuotasChange()


class UpdateProject(BaseModel):
    """What is absent stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    quotas: QuotasChange = QuotasChange()


class KeyOwner(BaseModel):
    """Keys belong to their project; there are no users here."""

    type: Literal["service_account"] = "service_account"
    service_account: None = None
    user: None = None


class KeyObject(BaseModel):
    """An API key without its secret; `scopes` and `capture` are our additions. Times are Unix seconds."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: KeyOwner = KeyOwner()
    owner_project_access: Literal["active"] = "active"
    scopes: list[str]
    capture: bool


class NewKeyObject(KeyObject):
    """A key as it is shown once, with its secret."""

    value: str


class KeyList(BaseModel):
    """A page of keys."""

    object: Literal["list"] = "list"
    data: list[KeyObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class CreateKey(BaseModel):
    """A new key; without scopes it may do everything within its project. With `capture` its completions are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    scopes: list[str] | None = None
    expires_in_seconds: Annotated[int, Field(strict=True)] | None = None
    capture: Annotated[bool, Field(strict=True)] = False


class UpdateKey(BaseModel):
    """What is absent stays as it is; an empty list of scopes gives everything within the project."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scopes: list[str] | None = None
    expires_in_seconds: Annotated[int, Field(strict=True)] | None = None
    capture: Annotated[bool, Field(strict=True)] | None = None


class RotateKey(BaseModel):
    """How long the old key still works."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    overlap_seconds: Annotated[int, Field(strict=True)] | None = None


class DeletedKey(BaseModel):
    """What is left of a deleted key."""

    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


class RateLimitObject(BaseModel):
    """The one limit of a project, for all models together; null is no limit."""

    id: Literal["rate_limit_all"] = "rate_limit_all"
    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: Literal["*"] = "*"
    max_requests_per_1_minute: int | None
    max_tokens_per_1_minute: int | None


class RateLimitList(BaseModel):
    """The rate limits of a project."""

    object: Literal["list"] = "list"
    data: list[RateLimitObject]
    first_id: str | None
    last_id: str | None
    has_more: Literal[False] = False


class UpdateRateLimit(BaseModel):
    """What is absent stays as it is; null brings the installation's default back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_requests_per_1_minute: Limit | None = None
    max_tokens_per_1_minute: Limit | None = None
