"""Owns the REST routes of webhook endpoints: OpenAI's, and deliveries, our addition.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

from fastapi import APIRouter

from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.webhooks.schemas import (
    OFFERED_EVENT_TYPES,
    CreateEndpoint,
    DeletedEndpoint,
    DeliveryObject,
    DeliveryPage,
    EndpointObject,
    EndpointPage,
    EndpointTestResult,
    EndpointWithSecret,
    EventTypeList,
    RotateSecret,
    SendTest,
    UpdateEndpoint,
)
from tunesmith_server.webhooks.service import WebhooksService


def create_router(service: WebhooksService) -> APIRouter:
    """/v1/webhook_endpoints and what lies below, and /v1/webhook_event_types."""
    router = APIRouter(prefix="/v1", tags=["webhooks"])

    @router.get("/webhook_event_types")
    async def list_event_types(principal: CurrentPrincipal) -> EventTypeList:
        return EventTypeList(data=list(OFFERED_EVENT_TYPES))

    @router.post("/webhook_endpoints")
    async def create_endpoint(body: CreateEndpoint, principal: CurrentPrincipal) -> EndpointWithSecret:
        return await service.create(principal, body)

    @router.get("/webhook_endpoints")
    async def list_endpoints(principal: CurrentPrincipal, after: str | None = None, limit: int = 20) -> EndpointPage:
        return await service.list(principal, after=after, limit=limit)

    @router.get("/webhook_endpoints/{endpoint_id}")
    async def get_endpoint(endpoint_id: str, principal: CurrentPrincipal) -> EndpointObject:
        return await service.get(principal, endpoint_id)

    @router.post("/webhook_endpoints/{endpoint_id}")
    async def update_endpoint(endpoint_id: str, body: UpdateEndpoint, principal: CurrentPrincipal) -> EndpointObject:
        return await service.update(principal, endpoint_id, body)

    @router.delete("/webhook_endpoints/{endpoint_id}")
    async def delete_endpoint(endpoint_id: str, principal: CurrentPrincipal) -> DeletedEndpoint:
        await service.delete(principal, endpoint_id)
        return DeletedEndpoint(id=endpoint_id)

    @router.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
    async def rotate_secret(
        endpoint_id: str, principal: CurrentPrincipal, body: RotateSecret | None = None
    ) -> EndpointWithSecret:
        return await service.rotate_secret(principal, endpoint_id, body or RotateSecret())

    @router.post("/webhook_endpoints/{endpoint_id}/test")
    async def send_test(
        endpoint_id: str, principal: CurrentPrincipal, body: SendTest | None = None
    ) -> EndpointTestResult:
        return await service.test(principal, endpoint_id, body or SendTest())

    _add_deliveries(router, service)
    return router


def _add_deliveries(router: APIRouter, service: WebhooksService) -> None:
    @router.get("/webhook_endpoints/{endpoint_id}/deliveries")
    async def list_deliveries(
        endpoint_id: str, principal: CurrentPrincipal, after: str | None = None, limit: int = 20
    ) -> DeliveryPage:
        return await service.list_deliveries(principal, endpoint_id, after=after, limit=limit)

    @router.post("/webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/retry")
    async def retry_delivery(endpoint_id: str, delivery_id: str, principal: CurrentPrincipal) -> DeliveryObject:
        return await service.retry_delivery(principal, endpoint_id, delivery_id)
