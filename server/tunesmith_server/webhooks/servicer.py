"""Owns the gRPC twin of the webhook routes.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

from typing import Any

import grpc.aio

from tunesmith_proto.webhooks.v1 import webhooks_pb2 as pb
from tunesmith_proto.webhooks.v1 import webhooks_pb2_grpc
from tunesmith_server.auth import Authenticator, Principal, authorization_of
from tunesmith_server.error_rendering import read_shape
from tunesmith_server.webhooks.schemas import (
    OFFERED_EVENT_TYPES,
    CreateEndpoint,
    DeliveryObject,
    EndpointObject,
    RotateSecret,
    SendTest,
    UpdateEndpoint,
)
from tunesmith_server.webhooks.service import WebhooksService

Context = grpc.aio.ServicerContext[Any, Any]


class WebhooksServicer(webhooks_pb2_grpc.WebhooksServiceServicer):
    """Implements tunesmith.webhooks.v1.WebhooksService."""

    def __init__(self, service: WebhooksService, authenticator: Authenticator) -> None:
        self._service = service
        self._authenticator = authenticator

    async def ListWebhookEventTypes(  # noqa: N802
        self, request: pb.ListWebhookEventTypesRequest, context: Context
    ) -> pb.ListWebhookEventTypesResponse:
        """What an endpoint can ask for."""
        await self._principal(context)
        return pb.ListWebhookEventTypesResponse(event_types=OFFERED_EVENT_TYPES)

    async def CreateWebhookEndpoint(  # noqa: N802
        self, request: pb.CreateWebhookEndpointRequest, context: Context
    ) -> pb.CreateWebhookEndpointResponse:
        """Makes an endpoint."""
        principal = await self._principal(context)
        sent = {"url": request.url} if request.url else {}
        body = read_shape(CreateEndpoint, {**sent, "event_types": list(request.event_types), "name": request.name})
        made = await self._service.create(principal, body)
        return pb.CreateWebhookEndpointResponse(webhook_endpoint=_endpoint(made), signing_secret=made.signing_secret)

    async def ListWebhookEndpoints(  # noqa: N802
        self, request: pb.ListWebhookEndpointsRequest, context: Context
    ) -> pb.ListWebhookEndpointsResponse:
        """Endpoints, newest first."""
        principal = await self._principal(context)
        page = await self._service.list(principal, after=request.after or None, limit=request.limit or 20)
        return pb.ListWebhookEndpointsResponse(
            webhook_endpoints=[_endpoint(each) for each in page.data], has_more=page.has_more
        )

    async def GetWebhookEndpoint(  # noqa: N802
        self, request: pb.GetWebhookEndpointRequest, context: Context
    ) -> pb.GetWebhookEndpointResponse:
        """One endpoint."""
        principal = await self._principal(context)
        return pb.GetWebhookEndpointResponse(webhook_endpoint=_endpoint(await self._service.get(principal, request.id)))

    async def UpdateWebhookEndpoint(  # noqa: N802
        self, request: pb.UpdateWebhookEndpointRequest, context: Context
    ) -> pb.UpdateWebhookEndpointResponse:
        """Changes an endpoint."""
        principal = await self._principal(context)
        sent = {name: getattr(request, name) for name in ("url", "name") if request.HasField(name)}
        if request.event_types:
            sent["event_types"] = list(request.event_types)
        changed = await self._service.update(principal, request.id, read_shape(UpdateEndpoint, sent))
        return pb.UpdateWebhookEndpointResponse(webhook_endpoint=_endpoint(changed))

    async def DeleteWebhookEndpoint(  # noqa: N802
        self, request: pb.DeleteWebhookEndpointRequest, context: Context
    ) -> pb.DeleteWebhookEndpointResponse:
        """Ends an endpoint."""
        await self._service.delete(await self._principal(context), request.id)
        return pb.DeleteWebhookEndpointResponse(id=request.id)

    async def RotateWebhookSecret(  # noqa: N802
        self, request: pb.RotateWebhookSecretRequest, context: Context
    ) -> pb.RotateWebhookSecretResponse:
        """Gives an endpoint another secret."""
        principal = await self._principal(context)
        body = RotateSecret(keep_old_secret_active_for_24_hours=request.keep_old_secret_active_for_24_hours)
        made = await self._service.rotate_secret(principal, request.id, body)
        return pb.RotateWebhookSecretResponse(webhook_endpoint=_endpoint(made), signing_secret=made.signing_secret)

    async def TestWebhookEndpoint(  # noqa: N802
        self, request: pb.TestWebhookEndpointRequest, context: Context
    ) -> pb.TestWebhookEndpointResponse:
        """Sends a sample now."""
        principal = await self._principal(context)
        body = read_shape(SendTest, {"event_type": request.event_type} if request.event_type else {})
        result = await self._service.test(principal, request.id, body)
        return pb.TestWebhookEndpointResponse(status_code=result.status_code, event_type=result.event_type)

    async def ListWebhookDeliveries(  # noqa: N802
        self, request: pb.ListWebhookDeliveriesRequest, context: Context
    ) -> pb.ListWebhookDeliveriesResponse:
        """Deliveries of an endpoint, newest first."""
        principal = await self._principal(context)
        page = await self._service.list_deliveries(
            principal, request.webhook_endpoint_id, after=request.after or None, limit=request.limit or 20
        )
        return pb.ListWebhookDeliveriesResponse(
            deliveries=[_delivery(each) for each in page.data], has_more=page.has_more
        )

    async def RetryWebhookDelivery(  # noqa: N802
        self, request: pb.RetryWebhookDeliveryRequest, context: Context
    ) -> pb.RetryWebhookDeliveryResponse:
        """Has a delivery sent again."""
        principal = await self._principal(context)
        again = await self._service.retry_delivery(principal, request.webhook_endpoint_id, request.delivery_id)
        return pb.RetryWebhookDeliveryResponse(delivery=_delivery(again))

    async def _principal(self, context: Context) -> Principal:
        return await self._authenticator.principal(authorization_of(context))


def _endpoint(shown: EndpointObject) -> pb.WebhookEndpoint:
    return pb.WebhookEndpoint(**shown.model_dump(exclude={"object", "signing_secret"}))


def _delivery(shown: DeliveryObject) -> pb.WebhookDelivery:
    return pb.WebhookDelivery(**shown.model_dump(exclude={"object", "data"}), subject_id=shown.data["id"])
