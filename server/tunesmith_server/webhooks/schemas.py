"""Owns the REST shapes of webhook endpoints, as OpenAI's clients know them, and of deliveries, our addition.

It must not know rows. Times are Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunesmith_server.fine_tunes.announcements import EVENT_TYPES

EventType = Annotated[str, Field(min_length=1, max_length=100)]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=50)]
Name = Annotated[str, Field(max_length=200)]

OFFERED_EVENT_TYPES = tuple(sorted(EVENT_TYPES.values()))


class CreateEndpoint(BaseModel):
    """The body of POST /v1/webhook_endpoints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    event_types: EventTypes
    name: Name = ""


class UpdateEndpoint(BaseModel):
    """The body of POST /v1/webhook_endpoints/{id}; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = None
    event_types: EventTypes | None = None
    name: Name | None = None


class RotateSecret(BaseModel):
    """The body of POST /v1/webhook_endpoints/{id}/rotate_secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_old_secret_active_for_24_hours: Annotated[bool, Field(strict=True)] = False


class SendTest(BaseModel):
    """The body of POST /v1/webhook_endpoints/{id}/test."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_type: EventType = "fine_tuning.job.succeeded"


class EndpointObject(BaseModel):
    """An endpoint without its secret."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str


class EndpointWithSecret(EndpointObject):
    """An endpoint as it is shown at creation and after a rotation."""

    signing_secret: Annotated[str, Field(repr=False)]


class EndpointPage(BaseModel):
    """Endpoints, newest first."""

    object: Literal["list"] = "list"
    data: list[EndpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedEndpoint(BaseModel):
    """What is left of a deleted endpoint."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class EndpointTestResult(BaseModel):
    """What an endpoint answered to a test."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class EventTypeList(BaseModel):
    """The event types that an endpoint can ask for."""

    object: Literal["list"] = "list"
    data: list[str]


class DeliveryObject(BaseModel):
    """One message to one endpoint; `id` is its `webhook-id`, `event_id` the `id` in its body."""

    id: str
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    created_at: int
    webhook_endpoint_id: str
    event_id: str
    event_type: str
    data: dict[str, Any]
    status: Literal["pending", "delivered", "given_up"]
    attempts: int
    next_attempt_at: int | None
    last_status_code: int | None
    last_error: str | None
    finished_at: int | None


class DeliveryPage(BaseModel):
    """Deliveries of an endpoint, newest first."""

    object: Literal["list"] = "list"
    data: list[DeliveryObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
