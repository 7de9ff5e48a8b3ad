"""Webhooks over gRPC: the same answers and the same error codes as over REST."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.server.webhooks.conftest import SUCCEEDED, Webhooks
from tests.support.factories import PRINCIPAL
from tunesmith_proto.webhooks.v1 import webhooks_pb2 as pb
from tunesmith_proto.webhooks.v1 import webhooks_pb2_grpc
from tunesmith_server.auth import Authenticator, Principal
from tunesmith_server.grpc_app import create_grpc_server
from tunesmith_server.webhooks.schemas import OFFERED_EVENT_TYPES
from tunesmith_server.webhooks.servicer import WebhooksServicer

NAME = pb.DESCRIPTOR.services_by_name["WebhooksService"].full_name
KEY = (("authorization", "Bearer mine"),)


class Keys:
    """Knows one key."""

    async def find_principal(self, key: str) -> Principal | None:
        return PRINCIPAL if key == "mine" else None


@pytest.fixture
async def stub(webhooks: Webhooks) -> AsyncIterator[webhooks_pb2_grpc.WebhooksServiceAsyncStub]:
    servicer = WebhooksServicer(webhooks.service, Authenticator(Keys(), webhooks.core.signer))
    server = create_grpc_server({NAME: partial(webhooks_pb2_grpc.add_WebhooksServiceServicer_to_server, servicer)})
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield webhooks_pb2_grpc.WebhooksServiceStub(channel)
    await server.stop(0)


async def test_the_life_of_an_endpoint(stub: webhooks_pb2_grpc.WebhooksServiceAsyncStub, webhooks: Webhooks) -> None:
    create = pb.CreateWebhookEndpointRequest(url=webhooks.receiver.url, event_types=[SUCCEEDED], name="ci")
    made = await stub.CreateWebhookEndpoint(create, metadata=KEY)
    endpoint_id = made.webhook_endpoint.id
    assert made.signing_secret.startswith("whsec_")

    update = pb.UpdateWebhookEndpointRequest(id=endpoint_id, name="")
    changed = (await stub.UpdateWebhookEndpoint(update, metadata=KEY)).webhook_endpoint
    assert (changed.name, list(changed.event_types), changed.url) == ("", [SUCCEEDED], webhooks.receiver.url)
    rotated = await stub.RotateWebhookSecret(pb.RotateWebhookSecretRequest(id=endpoint_id), metadata=KEY)
    assert rotated.signing_secret != made.signing_secret
    tested = await stub.TestWebhookEndpoint(pb.TestWebhookEndpointRequest(id=endpoint_id), metadata=KEY)
    assert (tested.status_code, tested.event_type) == (200, SUCCEEDED)
    listed = await stub.ListWebhookEndpoints(pb.ListWebhookEndpointsRequest(), metadata=KEY)
    assert list(listed.webhook_endpoints) == [rotated.webhook_endpoint]
    got = await stub.GetWebhookEndpoint(pb.GetWebhookEndpointRequest(id=endpoint_id), metadata=KEY)
    assert got.webhook_endpoint == rotated.webhook_endpoint
    types = await stub.ListWebhookEventTypes(pb.ListWebhookEventTypesRequest(), metadata=KEY)
    assert tuple(types.event_types) == OFFERED_EVENT_TYPES

    await webhooks.news()
    await webhooks.deliver()
    deliveries = pb.ListWebhookDeliveriesRequest(webhook_endpoint_id=endpoint_id)
    [delivery] = (await stub.ListWebhookDeliveries(deliveries, metadata=KEY)).deliveries
    assert (delivery.status, delivery.subject_id, delivery.last_status_code) == ("delivered", "ftjob-1", 200)
    retry = pb.RetryWebhookDeliveryRequest(webhook_endpoint_id=endpoint_id, delivery_id=delivery.id)
    assert (await stub.RetryWebhookDelivery(retry, metadata=KEY)).delivery.status == "pending"

    await stub.DeleteWebhookEndpoint(pb.DeleteWebhookEndpointRequest(id=endpoint_id), metadata=KEY)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetWebhookEndpoint(pb.GetWebhookEndpointRequest(id=endpoint_id), metadata=KEY)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason(caught.value) == "webhook_endpoint_not_found"


async def test_a_bad_shape_has_the_reason_that_rest_gives(stub: webhooks_pb2_grpc.WebhooksServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateWebhookEndpoint(pb.CreateWebhookEndpointRequest(event_types=[SUCCEEDED]), metadata=KEY)

    assert reason(caught.value) == "missing_required_parameter"


async def test_it_needs_a_key(stub: webhooks_pb2_grpc.WebhooksServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListWebhookEventTypes(pb.ListWebhookEventTypesRequest())

    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def reason(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(error).details[0].Unpack(info)
    return str(info.reason)
