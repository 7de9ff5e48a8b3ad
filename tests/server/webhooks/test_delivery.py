"""News reaches every endpoint that asked for it, at least once, signed, and for about a day."""

from __future__ import annotations

import asyncio
import threading
import time

import openai
import pytest
from sqlalchemy import select

from tests.server.webhooks.conftest import SUCCEEDED, Webhooks
from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL
from tests.support.loopback_http import Answer, Received
from tunesmith_server.db.tables import OutboxRow, WebhookDeliveryRow
from tunesmith_server.webhooks.delivery import WebhookDelivery
from tunesmith_server.webhooks.messages import RETRY_DELAYS
from tunesmith_server.webhooks.schemas import RotateSecret
from tunesmith_server.webhooks.sender import WebhookSender

FAILED = "fine_tuning.job.failed"
TOLERANCE = 10**10  # the test's clock is not the client's


async def test_the_official_client_unwraps_a_delivery(each_webhooks: Webhooks, clock: MovableClock) -> None:
    clock.now = time.time()  # the client compares with its own
    endpoint = await each_webhooks.endpoint()
    event_id = await each_webhooks.news()

    await each_webhooks.deliver()

    [request] = each_webhooks.receiver.received
    unwrap = openai.OpenAI(api_key="none").webhooks.unwrap
    event = unwrap(request.body, request.headers, secret=endpoint.signing_secret)
    assert (event.id, event.type) == (event_id, SUCCEEDED)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(request.body + b" ", request.headers, secret=endpoint.signing_secret)
    assert request.json == {
        "id": event_id,
        "object": "event",
        "created_at": int(each_webhooks.core.clock()),
        "type": SUCCEEDED,
        "data": {"id": "ftjob-1"},
    }
    [delivery] = (await each_webhooks.service.list_deliveries(PRINCIPAL, endpoint.id)).data
    assert delivery.id == request.headers["webhook-id"]
    assert (delivery.status, delivery.attempts, delivery.last_status_code) == ("delivered", 1, 200)
    assert (delivery.event_id, delivery.data) == (event_id, {"id": "ftjob-1"})


async def test_each_endpoint_gets_what_it_asked_for_once(each_webhooks: Webhooks) -> None:
    await each_webhooks.endpoint(SUCCEEDED, path="/a")
    await each_webhooks.endpoint(SUCCEEDED, FAILED, path="/b")
    deleted = await each_webhooks.endpoint(SUCCEEDED, path="/deleted")
    await each_webhooks.service.delete(PRINCIPAL, deleted.id)
    await each_webhooks.news(SUCCEEDED)
    await each_webhooks.news(FAILED)
    await each_webhooks.news(SUCCEEDED, project_id="other")

    await each_webhooks.deliver()
    await each_webhooks.deliver()

    assert sorted((request.path, request.json["type"]) for request in each_webhooks.receiver.received) == [
        ("/a", SUCCEEDED),
        ("/b", FAILED),
        ("/b", SUCCEEDED),
    ]
    async with each_webhooks.core.database.read() as session:
        assert all(row.fanned_out_at is not None for row in await session.scalars(select(OutboxRow)))


async def test_two_control_planes_send_it_once(each_webhooks: Webhooks) -> None:
    others = [WebhookDelivery(each_webhooks.core, WebhookSender(allow_private=True)) for _ in range(3)]
    workers = [each_webhooks.worker, *others]
    await each_webhooks.endpoint()
    for _ in range(3):
        await each_webhooks.news()

    await asyncio.gather(*(worker.run_once() for worker in workers))
    await asyncio.gather(*(worker.run_once() for worker in workers))
    await asyncio.gather(*(worker.idle() for worker in workers))

    assert len(each_webhooks.receiver.received) == 3
    for other in others:
        await other.stop()


async def test_a_refused_message_is_tried_again_under_its_id_until_it_is_taken(
    webhooks: Webhooks, clock: MovableClock
) -> None:
    endpoint = await webhooks.endpoint()
    webhooks.receiver.statuses = [500, 302, None, 204]
    await webhooks.news()

    for attempt in range(4):
        await webhooks.deliver()
        await webhooks.deliver()  # not due yet
        assert len(webhooks.receiver.received) == attempt + 1
        clock.advance(RETRY_DELAYS[attempt] * 1.1 + 1)
    await webhooks.deliver()

    requests = webhooks.receiver.received
    assert len(requests) == 4
    assert len({request.headers["webhook-id"] for request in requests}) == 1
    assert len({request.body for request in requests}) == 1
    assert len({request.headers["webhook-timestamp"] for request in requests}) == 4
    [delivery] = (await webhooks.service.list_deliveries(PRINCIPAL, endpoint.id)).data
    assert (delivery.status, delivery.attempts, delivery.last_error) == ("delivered", 4, None)


async def test_a_message_that_nobody_takes_is_given_up_and_can_be_sent_again(
    webhooks: Webhooks, clock: MovableClock
) -> None:
    endpoint = await webhooks.endpoint()
    webhooks.receiver.statuses = [503]
    await webhooks.news()

    for _ in range(len(RETRY_DELAYS) + 3):
        await webhooks.deliver()
        clock.advance(10 * 3600)

    assert len(webhooks.receiver.received) == len(RETRY_DELAYS) + 1
    [delivery] = (await webhooks.service.list_deliveries(PRINCIPAL, endpoint.id)).data
    assert (delivery.status, delivery.last_status_code, delivery.next_attempt_at) == ("given_up", 503, None)
    assert delivery.finished_at is not None

    webhooks.receiver.statuses = [200]
    again = await webhooks.service.retry_delivery(PRINCIPAL, endpoint.id, delivery.id)
    assert (again.status, again.attempts) == ("pending", 0)
    await webhooks.deliver()
    [delivery] = (await webhooks.service.list_deliveries(PRINCIPAL, endpoint.id)).data
    assert delivery.status == "delivered"


async def test_a_sender_that_died_leaves_a_message_that_is_sent_again(webhooks: Webhooks, clock: MovableClock) -> None:
    await webhooks.endpoint()
    await webhooks.news()
    dying = WebhookDelivery(webhooks.core, WebhookSender(allow_private=True))
    await dying.run_once()
    await dying.stop()  # its attempt is cut off before or after the receiver took it
    before = len(webhooks.receiver.received)

    await webhooks.deliver()
    assert len(webhooks.receiver.received) == before
    clock.advance(61)
    await webhooks.deliver()

    assert len(webhooks.receiver.received) == before + 1
    async with webhooks.core.database.read() as session:
        assert [row.state for row in await session.scalars(select(WebhookDeliveryRow))] == ["delivered"]


async def test_deleting_an_endpoint_ends_what_waits_for_it(webhooks: Webhooks, clock: MovableClock) -> None:
    endpoint = await webhooks.endpoint()
    webhooks.receiver.statuses = [500]
    await webhooks.news()
    await webhooks.deliver()

    await webhooks.service.delete(PRINCIPAL, endpoint.id)
    clock.advance(3600)
    await webhooks.deliver()

    assert len(webhooks.receiver.received) == 1
    async with webhooks.core.database.read() as session:
        assert [row.state for row in await session.scalars(select(WebhookDeliveryRow))] == ["given_up"]


async def test_both_secrets_sign_for_a_day_after_a_rotation_that_keeps_the_old_one(
    webhooks: Webhooks, clock: MovableClock
) -> None:
    first = await webhooks.endpoint()
    second = await webhooks.service.rotate_secret(
        PRINCIPAL, first.id, RotateSecret(keep_old_secret_active_for_24_hours=True)
    )
    await webhooks.news()
    await webhooks.deliver()
    clock.advance(24 * 3600)
    await webhooks.news()
    await webhooks.deliver()

    during, after = webhooks.receiver.received
    assert accepts(first.signing_secret, during.body, during.headers)
    assert accepts(second.signing_secret, during.body, during.headers)
    assert not accepts(first.signing_secret, after.body, after.headers)
    assert accepts(second.signing_secret, after.body, after.headers)


async def test_a_slow_endpoint_does_not_hold_up_the_others(webhooks: Webhooks) -> None:
    release = threading.Event()
    answer = webhooks.receiver.respond
    held = []

    def respond(request: Received) -> Answer | None:
        if request.path == "/slow":
            held.append(request)
            release.wait(60)
        return answer(request)

    webhooks.receiver.server.respond = respond
    await webhooks.endpoint(path="/slow")
    await webhooks.endpoint(path="/healthy")
    for _ in range(12):
        await webhooks.news()

    async with asyncio.timeout(30):
        while len(webhooks.receiver.received) < 12:
            await webhooks.worker.run_once()
    under_way = len(held)
    release.set()
    await webhooks.worker.idle()

    assert {request.path for request in webhooks.receiver.received[:12]} == {"/healthy"}
    assert under_way <= 4


def accepts(secret: str, body: bytes, headers: object) -> bool:
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    try:
        client.webhooks.verify_signature(body, headers, tolerance=TOLERANCE)  # type: ignore[arg-type]
    except openai.InvalidWebhookSignatureError:
        return False
    return True
