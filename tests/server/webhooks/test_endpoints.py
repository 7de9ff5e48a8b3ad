"""The webhook routes as the official client drives them, and what it must not get away with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from tests.server.webhooks.conftest import SUCCEEDED, Webhooks
from tests.support.asgi_server import serving
from tests.support.factories import PRINCIPAL
from tests.support.ports import free_ports
from tunesmith_server.auth import Authenticator, Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import WebhookEndpointRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.http_app import create_http_app
from tunesmith_server.webhooks import repository
from tunesmith_server.webhooks.endpoints import create_router
from tunesmith_server.webhooks.schemas import OFFERED_EVENT_TYPES, CreateEndpoint, UpdateEndpoint
from tunesmith_server.webhooks.sender import WebhookSender
from tunesmith_server.webhooks.service import MAX_ENDPOINTS, WebhooksService

ROUTE = "/v1/webhook_endpoints"


class Keys:
    """Knows one key for each of two projects."""

    async def find_principal(self, key: str) -> Principal | None:
        return {"mine": PRINCIPAL, "theirs": Principal("other", "key-2")}.get(key)


def app_of(core: Core, service: WebhooksService) -> FastAPI:
    return create_http_app(core, Authenticator(Keys(), core.signer), [create_router(service)])


@pytest.fixture
async def http(webhooks: Webhooks) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app_of(webhooks.core, webhooks.service))
    headers = {"authorization": "Bearer mine"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client


async def test_the_official_client_manages_endpoints(webhooks: Webhooks) -> None:
    async with (
        serving(app_of(webhooks.core, webhooks.service)) as url,
        openai.AsyncOpenAI(api_key="mine", base_url=f"{url}/v1", max_retries=0) as client,
    ):
        made = await client.webhooks.create(name="ci", url=f"{webhooks.receiver.url}/a", event_types=[SUCCEEDED])
        shown = await client.webhooks.retrieve(made.id)
        changed = await client.webhooks.update(made.id, name="cd", event_types=["fine_tuning.job.failed"])
        rotated = await client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        tested = await client.webhooks.test(made.id, event_type=SUCCEEDED)
        for _ in range(2):
            await client.webhooks.create(name="", url=f"{webhooks.receiver.url}/b", event_types=[SUCCEEDED])
        listed = [each.id async for each in client.webhooks.list(limit=1)]
        types = await client.webhooks.event_types.list()
        gone = await client.webhooks.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.webhooks.retrieve(made.id)

    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == f"whsec_…{made.signing_secret[-4:]}"
    assert not hasattr(shown, "signing_secret")
    assert (shown.name, shown.object) == ("ci", "webhook_endpoint")
    assert (changed.name, changed.event_types, changed.url) == ("cd", ["fine_tuning.job.failed"], made.url)
    assert rotated.signing_secret not in {made.signing_secret, None}
    assert (tested.status_code, tested.event_type) == (200, SUCCEEDED)
    assert webhooks.receiver.received[0].json["type"] == SUCCEEDED
    assert len(listed) == 3
    assert listed[-1] == made.id
    assert types.data == list(OFFERED_EVENT_TYPES)
    assert (gone.id, gone.deleted) == (made.id, True)


async def test_nothing_readable_of_a_secret_is_stored(webhooks: Webhooks) -> None:
    made = await webhooks.endpoint()

    async with webhooks.core.database.read() as session:
        row = await session.get_one(WebhookEndpointRow, made.id)
    stored = " ".join(str(value) for value in vars(row).values())
    assert made.signing_secret.removeprefix("whsec_") not in stored


async def test_a_word_is_not_taken_for_yes_or_no(http: httpx.AsyncClient, webhooks: Webhooks) -> None:
    made = await webhooks.endpoint()
    body = {"keep_old_secret_active_for_24_hours": "true"}
    error = (await http.post(f"{ROUTE}/{made.id}/rotate_secret", json=body)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_type", "keep_old_secret_active_for_24_hours")


async def test_another_projects_endpoints_do_not_exist(http: httpx.AsyncClient, webhooks: Webhooks) -> None:
    made = await webhooks.endpoint()
    await webhooks.news()
    await webhooks.deliver()
    [delivery] = (await http.get(f"{ROUTE}/{made.id}/deliveries")).json()["data"]
    theirs = {"authorization": "Bearer theirs"}

    answers = [
        await http.get(f"{ROUTE}/{made.id}", headers=theirs),
        await http.post(f"{ROUTE}/{made.id}", headers=theirs, json={"name": "x"}),
        await http.delete(f"{ROUTE}/{made.id}", headers=theirs),
        await http.post(f"{ROUTE}/{made.id}/rotate_secret", headers=theirs),
        await http.post(f"{ROUTE}/{made.id}/test", headers=theirs),
        await http.get(f"{ROUTE}/{made.id}/deliveries", headers=theirs),
        await http.post(f"{ROUTE}/{made.id}/deliveries/{delivery['id']}/retry", headers=theirs),
    ]

    assert {answer.status_code for answer in answers} == {404}
    assert {answer.json()["error"]["code"] for answer in answers} == {"webhook_endpoint_not_found"}
    assert (await http.get(ROUTE, headers=theirs)).json()["data"] == []
    assert (await http.get(ROUTE, headers=theirs, params={"after": made.id})).json()["error"][
        "code"
    ] == "invalid_cursor"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"url": None}, "invalid_type", "url"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "invalid_webhook_url", "url"),
        ({"url": "https://169.254.169.254/"}, "webhook_target_refused", "url"),
        ({"url": "https://localhost/"}, "webhook_target_refused", "url"),
        ({"url": "https://[::ffff:127.0.0.1]/"}, "webhook_target_refused", "url"),
        ({"url": "https://127.0.0.1.invalid/"}, "webhook_host_unknown", "url"),
        ({"event_types": []}, "invalid_value", "event_types"),
        ({"event_types": ["response.completed"]}, "unsupported_event_type", "event_types"),
        ({"name": "a\x00b"}, "invalid_value", "name"),
        ({"secret": "mine"}, "unknown_parameter", "secret"),
    ],
)
async def test_what_is_refused_at_creation(core: Core, change: dict[str, Any], code: str, param: str) -> None:
    sender = WebhookSender(allow_private=False)
    transport = httpx.ASGITransport(app_of(core, WebhooksService(core, sender)))
    body = {"url": "https://8.8.8.8/", "event_types": [SUCCEEDED]} | change
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post(ROUTE, json=body, headers={"authorization": "Bearer mine"})
    await sender.close()

    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


async def test_an_update_cannot_move_an_endpoint_into_the_network(webhooks: Webhooks) -> None:
    made = await webhooks.endpoint()
    sender = WebhookSender(allow_private=False)
    strict = WebhooksService(webhooks.core, sender)

    with pytest.raises(InvalidRequestError) as caught:
        await strict.update(PRINCIPAL, made.id, UpdateEndpoint(url="https://10.0.0.1/"))
    await sender.close()

    assert caught.value.code == "webhook_target_refused"
    assert (await strict.get(PRINCIPAL, made.id)).url == made.url


async def test_deliveries_are_paged_and_can_be_sent_again(http: httpx.AsyncClient, webhooks: Webhooks) -> None:
    made = await webhooks.endpoint()
    events = [await webhooks.news() for _ in range(3)]
    await webhooks.deliver()

    first = (await http.get(f"{ROUTE}/{made.id}/deliveries", params={"limit": 2})).json()
    rest = (await http.get(f"{ROUTE}/{made.id}/deliveries", params={"limit": 2, "after": first["last_id"]})).json()
    assert [each["event_id"] for each in first["data"] + rest["data"]] == events[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)

    again = await http.post(f"{ROUTE}/{made.id}/deliveries/{first['first_id']}/retry")
    assert again.json()["status"] == "pending"
    await webhooks.deliver()
    assert webhooks.receiver.received[-1].headers["webhook-id"] == first["first_id"]
    missing = await http.post(f"{ROUTE}/{made.id}/deliveries/wh_nothing/retry")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "webhook_delivery_not_found")


async def test_what_is_being_sent_is_not_sent_again_at_the_same_time(
    http: httpx.AsyncClient, webhooks: Webhooks
) -> None:
    made = await webhooks.endpoint()
    await webhooks.news()
    await webhooks.deliver()
    async with webhooks.core.database.write() as session:
        [(row, _)] = await repository.list_deliveries(session, made.id, after=None, limit=1)
        row.state = repository.SENDING

    answer = await http.post(f"{ROUTE}/{made.id}/deliveries/{row.id}/retry")

    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")
    assert answer.json()["error"]["code"] == "webhook_delivery_in_progress"


async def test_a_test_of_an_unknown_event_names_the_field_at_fault(http: httpx.AsyncClient, webhooks: Webhooks) -> None:
    made = await webhooks.endpoint()

    error = (await http.post(f"{ROUTE}/{made.id}/test", json={"event_type": "response.completed"})).json()["error"]

    assert (error["code"], error["param"]) == ("unsupported_event_type", "event_type")


async def test_a_test_that_reaches_nobody_says_so(http: httpx.AsyncClient, webhooks: Webhooks) -> None:
    webhooks.receiver.url = f"http://127.0.0.1:{free_ports(1)[0]}"
    made = await webhooks.endpoint()

    answer = await http.post(f"{ROUTE}/{made.id}/test")

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "webhook_test_failed")


async def test_a_project_has_a_bounded_number_of_endpoints(http: httpx.AsyncClient, webhooks: Webhooks) -> None:
    body = {"url": webhooks.receiver.url, "event_types": [SUCCEEDED]}
    codes = [(await http.post(ROUTE, json=body)).status_code for _ in range(MAX_ENDPOINTS + 1)]

    assert codes == [200] * MAX_ENDPOINTS + [400]


async def test_a_project_that_has_no_room_has_no_name_looked_up(webhooks: Webhooks) -> None:
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    sender = WebhookSender(allow_private=True, resolve=resolve)
    service = WebhooksService(webhooks.core, sender)
    request = CreateEndpoint(url="https://hooks.example.com/", event_types=[SUCCEEDED])
    for _ in range(MAX_ENDPOINTS):
        await service.create(PRINCIPAL, request)
    with pytest.raises(InvalidRequestError) as caught:
        await service.create(PRINCIPAL, request)
    await sender.close()

    assert caught.value.code == "too_many_webhook_endpoints"
    assert len(asked) == MAX_ENDPOINTS
