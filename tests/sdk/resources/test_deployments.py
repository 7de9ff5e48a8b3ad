"""`client.deployments`, and the requests that it makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_answers import json_answer
from tests.support.fake_api import API_KEY
from tests.support.loopback_http import Answer, LoopbackServer, Received
from tunesmith import AsyncTunesmith, Tunesmith, TunesmithError

A, B = "ft:m:default:a:aaaaaaaa", "ft:m:default:b:bbbbbbbb"


class Deployments:
    """Answers as the server does for one name; `calls` are the methods, paths and bodies that came."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, object]] = []
        self.history: list[list[dict[str, object]]] = []

    def respond(self, request: Received) -> Answer:
        """One answer."""
        body: Any = request.json if request.body else None
        self.calls.append((request.method, request.path, body))
        if request.path.endswith("/versions"):
            below = int(request.query.get("after", len(self.history) + 1))
            newest = list(enumerate(self.history, 1))[: below - 1][::-1][: int(request.query["limit"])]
            data = [{"version": number, "created_at": 1, "targets": targets} for number, targets in newest]
            return json_answer({"object": "list", "data": data, "has_more": False})
        if request.method == "DELETE":
            return json_answer({"name": "bot", "object": "deployment.deleted", "deleted": True})
        if request.path.endswith("/rollback"):
            self.history.append(self.history[body["version"] - 1])
        elif body and "targets" in body:
            self.history.append(body["targets"])
        deployment = {
            "name": "bot",
            "created_at": 1,
            "updated_at": 1,
            "version": len(self.history),
            "targets": [target | {"state": "ready"} for target in self.history[-1]],
            "pinned": True,
        }
        listed = request.method == "GET" and request.path == "/v1/deployments"
        return json_answer({"object": "list", "data": [deployment]} if listed else deployment)


@pytest.fixture
def server() -> Iterator[tuple[Deployments, str]]:
    """What answers, and where."""
    deployments = Deployments()
    listening = LoopbackServer(0, deployments.respond)
    yield deployments, f"http://127.0.0.1:{listening.port}"
    listening.stop()


def test_the_life_of_a_name(server: tuple[Deployments, str]) -> None:
    deployments, url = server
    with Tunesmith(base_url=url, api_key=API_KEY) as client:
        assert client.deployments.create("bot", A, pinned=True).targets[0].state == "ready"
        assert client.deployments.update("bot", {A: 9, B: 1}).version == 2
        client.deployments.update("bot", pinned=False)
        assert [target.model for target in client.deployments.roll_back("bot").targets] == [A]
        assert client.deployments.roll_back("bot", 2).version == 4
        assert [each.version for each in client.deployments.versions("bot", limit=2)] == [4, 3]
        assert [each.name for each in client.deployments.list()] == ["bot"]
        assert client.deployments.retrieve("bot").pinned
        assert client.deployments.delete("bot").deleted
    assert deployments.calls[:5] == [
        ("POST", "/v1/deployments", {"name": "bot", "targets": [{"model": A, "weight": 1}], "pinned": True}),
        ("POST", "/v1/deployments/bot", {"targets": [{"model": A, "weight": 9}, {"model": B, "weight": 1}]}),
        ("POST", "/v1/deployments/bot", {"pinned": False}),
        ("GET", "/v1/deployments/bot/versions", None),
        ("POST", "/v1/deployments/bot/rollback", {"version": 1}),
    ]


def test_targets_as_they_travel_and_as_they_are_returned(server: tuple[Deployments, str]) -> None:
    deployments, url = server
    with Tunesmith(base_url=url, api_key=API_KEY) as client:
        made = client.deployments.create("bot", [{"model": A, "weight": 9}, {"model": B, "weight": 1}])
        client.deployments.update("bot", made.targets)
    sent = [{"model": A, "weight": 9}, {"model": B, "weight": 1}]
    assert [body["targets"] for _, _, body in deployments.calls] == [sent, sent]  # type: ignore[index]


def test_what_no_targets_are(server: tuple[Deployments, str]) -> None:
    deployments, url = server
    with Tunesmith(base_url=url, api_key=API_KEY) as client, pytest.raises(TypeError) as caught:
        client.deployments.create("bot", [A, B])  # type: ignore[list-item]
    assert (
        str(caught.value) == 'A target is {"model": …, "weight": …}, not str: give several models as {model: weight}.'
    )
    assert deployments.calls == []


async def test_there_may_be_no_way_back(server: tuple[Deployments, str]) -> None:
    _, url = server
    async with AsyncTunesmith(base_url=url, api_key=API_KEY) as client:
        await client.deployments.create("bot", A)
        with pytest.raises(TunesmithError) as caught:
            await client.deployments.roll_back("bot")
    assert caught.value.code == "deployment_version_not_found"
