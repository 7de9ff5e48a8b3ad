"""A client's own request goes to the gateway that has the model and comes back whole, or is answered by another one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.inference.gateway import GatewayUnderTest, answer, gateway_on_simulator, until
from tests.support import asgi_server
from tests.support.ports import free_ports
from tunesmith_proto.registry.v1 import serving_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORWARDED, IF_ROOM = "x-tunesmith-forwarded", "x-tunesmith-if-room"
MODELS = [
    *("echoes", "chosen", "model_loading", "holds", "streams", "breaks-late", "twice", "busy", "hangs", "takes-long"),
    *("overloaded", "overloaded-streamed", "breaks", "breaks-streamed", "gone", "gone-streamed"),
]
EVENT = b'data: {"id":"1","choices":[]}\n\n'


@dataclass
class Peers:
    """Stand for other gateways, each with the model that is called as what it does; `gone` does not listen."""

    seen: list[Request] = field(default_factory=list)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    proceed: asyncio.Event = field(default_factory=asyncio.Event)
    healths: int = 0

    async def answer(self, request: Request) -> Response:
        """Does what the first part of the path says."""
        self.seen.append(request)
        does = request.path_params["does"]
        if does == "takes-long":
            await self.proceed.wait()
        if does in ("echoes", "busy", "takes-long"):
            content = {"headers": dict(request.headers), "body": (await request.body()).decode()}
            return JSONResponse(content, 418, {"x-ratelimit-remaining-requests": "7", "x-tunesmith-model": "m"})
        if does.startswith(("overloaded", "model_loading")):
            return JSONResponse({"error": {"code": does.partition("-")[0]}}, 503, {"retry-after": "7"})
        if does == "holds":
            self.held.set()
            while (await request.receive())["type"] != "http.disconnect":
                continue
            self.left.set()
        return StreamingResponse(_parts(does), media_type="text/event-stream")

    async def health(self, request: Request) -> Response:
        """Always well."""
        self.healths += 1
        return JSONResponse({"status": "ok"})


async def _hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a process does that was stopped: connections are taken, and nobody answers."""
    while await reader.read(65536):
        continue
    writer.close()


async def _parts(does: str) -> AsyncIterator[bytes]:
    if does == "streams":
        yield EVENT
        yield b"data: [DONE]\n\n"
        return
    if does == "breaks-late":
        yield EVENT + EVENT + b'data: {"half'
        # What is written with the end of the connection might not leave any more.
        await asyncio.sleep(0.05)
    raise ConnectionAbortedError


@dataclass(frozen=True)
class Several:
    """A gateway under test and its peers."""

    gateway: GatewayUnderTest
    peers: Peers

    async def outcomes(self) -> dict[str, int]:
        """How often each has come of a request that was passed on."""
        start = 'tunesmith_gateway_forwarded_total{outcome="'
        lines = (await self.gateway.http.get("/metrics")).text.splitlines()
        found = [line.removeprefix(start).split('"} ') for line in lines if line.startswith(start)]
        return {outcome: int(float(count)) for outcome, count in found}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def several(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Several]:
    """The peers have no room, so that this gateway is the home of every model."""
    folder: Path = tmp_path_factory.mktemp("gateway")
    peers = Peers()
    health = Route("/{does}/health", peers.health)
    app = Starlette(routes=[health, Route("/{does}/{route:path}", peers.answer, methods=["POST"])])
    async with (
        asgi_server.serving(app) as url,
        await asyncio.start_server(_hang, "127.0.0.1", 0) as hanging,
        # It looks every second.
        gateway_on_simulator(folder, gateway_address="http://127.0.0.1:9/", engine_idle_seconds=4.0) as gateway,
    ):
        revisions = {name: gateway.add_adapter(name, name, checkpoint=True) for name in MODELS}
        ready = {
            name: [revision] for name, revision in revisions.items() if not name.startswith(("gone", "twice", "hangs"))
        }
        told = [_peer(name, f"{url}/{name}", held) for name, held in ready.items()]
        told += [_peer(f"breaks-{number}", f"{url}/breaks-{number}", [revisions["twice"]]) for number in (1, 2)]
        gone = [revision for name, revision in revisions.items() if name.startswith("gone")]
        told += [_peer("gone", f"http://127.0.0.1:{free_ports(1)[0]}", gone)]
        hangs = f"http://127.0.0.1:{hanging.sockets[0].getsockname()[1]}"
        told += [_peer("hangs", hangs, [revisions["hangs"]])]
        gateway.control_plane.peers = told
        await until(lambda: _knows(gateway, len(told)))
        yield Several(gateway, peers)


def _peer(name: str, address: str, ready: list[str]) -> serving_pb2.Peer:
    return serving_pb2.Peer(presence=serving_pb2.Presence(name=name, address=address), ready=ready)


async def _answers(gateway: GatewayUnderTest, model: str) -> dict[str, Any] | None:
    said = await gateway.chat(model, "x", max_tokens=2)
    return said.json() if said.status_code == 200 else None


async def _has_moved(gateway: GatewayUnderTest) -> bool:
    return (await gateway.chat("moving")).status_code == 503


async def _knows(gateway: GatewayUnderTest, peers: int) -> bool:
    said = (await gateway.http.get("/health")).json()
    return len(said["peers"]) == peers and [engine["state"] for engine in said["engines"]] == ["ready"]


async def test_the_request_arrives_as_it_was_sent_and_the_answer_comes_back_as_it_is(several: Several) -> None:
    body = '{"model": "echoes",  "messages": [{"role": "user", "content": "ü"}]}'
    headers = {"x-request-id": "mine", "content-type": "application/json", "te": "trailers"}
    said = await several.gateway.http.post("/v1/chat/completions", content=body.encode(), headers=headers)
    assert (said.status_code, said.headers["x-request-id"]) == (418, "mine")
    assert (said.headers["x-ratelimit-remaining-requests"], said.headers["x-tunesmith-model"]) == ("7", "m")
    seen = said.json()
    assert seen["body"] == body
    assert seen["headers"]["authorization"] == "Bearer key-1"
    assert (seen["headers"]["x-request-id"], seen["headers"][FORWARDED]) == ("mine", "echoes")
    assert "te" not in seen["headers"]


async def test_a_request_that_was_passed_on_once_is_answered_here(several: Several) -> None:
    body = {"model": "streams", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    asked = len(several.peers.seen)
    said = await several.gateway.http.post("/v1/chat/completions", json=body, headers={FORWARDED: "streams"})
    assert said.json()["choices"][0]["message"]["content"] == answer("streams", "x", 2)
    assert len(several.peers.seen) == asked
    # Loaded here now, it is not passed on any more.
    assert (await several.gateway.chat("streams", "x", max_tokens=2)).status_code == 200
    assert len(several.peers.seen) == asked


async def test_what_the_gateway_before_has_chosen_is_what_a_deployment_answers_with(several: Several) -> None:
    gateway = several.gateway
    gateway.control_plane.deploy("bot", ("echoes", 1), ("chosen", 0))
    body = {"model": "bot", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    said = await gateway.http.post("/v1/chat/completions", json=body)
    assert said.json()["headers"][FORWARDED] == "echoes"
    said = await gateway.http.post("/v1/chat/completions", json=body, headers={FORWARDED: "chosen"})
    assert said.json()["choices"][0]["message"]["content"] == answer("chosen", "x", 2)
    assert (said.json()["model"], said.headers["x-tunesmith-model"]) == ("bot", "chosen")


async def test_a_model_for_which_an_engine_had_to_stop_is_not_taken_where_others_may_have_room(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path, gateway_address="http://127.0.0.1:9", max_engines=1) as gateway:
        gateway.add_full("whole", "whole")
        assert (await gateway.chat("tiny", max_tokens=1)).status_code == 200
        body = {"model": "whole", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        headers = {FORWARDED: "whole"}
        said = await gateway.http.post("/v1/chat/completions", json=body, headers=headers | {IF_ROOM: "1"})
        assert (said.status_code, said.json()["error"]["code"]) == (503, "overloaded")
        said = await gateway.http.post("/v1/chat/completions", json=body, headers=headers)
        assert said.json()["choices"][0]["message"]["content"] == answer("whole", "x", 2)


async def test_nobody_gets_another_projects_model_by_choosing_it(several: Several) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    headers = {"authorization": "Bearer key-2", FORWARDED: "echoes"}
    said = await several.gateway.http.post("/v1/chat/completions", json=body, headers=headers)
    assert (said.status_code, said.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_key_that_is_nobodys_is_not_passed_on(several: Several) -> None:
    asked = len(several.peers.seen)
    body = {"model": "echoes", "messages": [{"role": "user", "content": "x"}]}
    headers = {"authorization": "Bearer no-key"}
    assert (await several.gateway.http.post("/v1/chat/completions", json=body, headers=headers)).status_code == 401
    assert len(several.peers.seen) == asked


async def test_errors_of_a_peer_are_answers(several: Several) -> None:
    said = await several.gateway.chat("model_loading")
    assert (said.status_code, said.headers["retry-after"], said.json()["error"]["code"]) == (503, "7", "model_loading")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("peer", "outcome"), [("overloaded", "overloaded"), ("breaks", "lost"), ("gone", "unreachable")]
)
async def test_what_a_peer_does_not_answer_is_answered_here(
    several: Several, peer: str, outcome: str, stream: bool
) -> None:
    model = f"{peer}-streamed" if stream else peer
    before = (await several.outcomes()).get(outcome, 0)
    said = await several.gateway.chat(model, "x", max_tokens=2, stream=stream)
    assert said.status_code == 200, said.text
    events = [line[6:] for line in said.text.splitlines() if line.startswith("data: {")] if stream else [said.text]
    parts = [choice.get("delta") or choice["message"] for event in events for choice in json.loads(event)["choices"]]
    assert "".join(part.get("content") or "" for part in parts) == answer(model, "x", 2)
    assert (await several.outcomes())[outcome] == before + 1


async def test_what_two_peers_break_on_is_not_tried_a_third_time(several: Several) -> None:
    said = await several.gateway.chat("twice")
    assert (said.status_code, said.json()["error"]["code"]) == (500, "engine_error")


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_after_whole_events(
    several: Several, route: str, body: dict[str, Any]
) -> None:
    sent = {"model": "breaks-late", "stream": True, **body}
    said = await several.gateway.http.post(route, json=sent)
    assert said.status_code == 200
    *events, last = said.text.encode().removesuffix(b"\n\n").split(b"\n\n")
    assert events == [EVENT.strip()] * 2
    told = json.loads(last.partition(b"data: ")[2])
    if route == "/v1/responses":
        assert (last.splitlines()[0], told["code"], told["sequence_number"]) == (b"event: error", "engine_error", 2)
    else:
        assert told["error"]["code"] == "engine_error"
    # So that the next one of these is passed on as well.
    assert (await several.gateway.chat("echoes")).status_code == 418


async def test_a_peer_that_hangs_is_given_up_and_one_that_takes_long_is_not(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith_inference.forwarding._PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("tunesmith_inference.forwarding._HEALTH_SECONDS", 1.0)
    said = await several.gateway.chat("hangs", "x", max_tokens=2)
    assert said.json()["choices"][0]["message"]["content"] == answer("hangs", "x", 2)
    monkeypatch.setattr("tunesmith_inference.forwarding._HEALTH_SECONDS", 20.0)
    asking = asyncio.create_task(several.gateway.chat("takes-long"))
    # It was asked how it is three times in the meantime.
    await until(lambda: several.peers.healths >= 3)
    assert not asking.done()
    several.peers.proceed.set()
    assert (await asking).status_code == 418


async def test_who_leaves_before_the_answer_ends_the_wait_at_the_peer(several: Several) -> None:
    asking = asyncio.create_task(several.gateway.chat("holds"))
    await asyncio.wait_for(several.peers.held.wait(), 10)
    asking.cancel()
    await asyncio.wait_for(several.peers.left.wait(), 10)


async def test_a_peer_that_cannot_be_reached_is_left_out_after_three_tries(several: Several) -> None:
    gateway = several.gateway
    peers, gateway.control_plane.peers = gateway.control_plane.peers, []
    revisions = [gateway.add_adapter(f"away-{number}", f"away {number}", checkpoint=True) for number in range(5)]
    away = _peer("away", f"http://127.0.0.1:{free_ports(1)[0]}", revisions)
    gateway.control_plane.peers = [*peers, away]
    await until(lambda: _knows(gateway, len(peers) + 1))
    before = (await several.outcomes())["unreachable"]
    for number in range(5):
        assert (await gateway.chat(f"away-{number}", max_tokens=1)).status_code == 200
    assert (await several.outcomes())["unreachable"] == before + 3
    (said,) = [peer for peer in (await gateway.http.get("/health")).json()["peers"] if peer["name"] == "away"]
    assert said["asked"] is False


async def test_a_model_that_is_hot_elsewhere_is_loaded_here_while_it_is_answered_there(several: Several) -> None:
    gateway = several.gateway
    busy = next(peer for peer in gateway.control_plane.peers if peer.presence.name == "busy")
    assert (await gateway.chat("busy")).status_code == 418
    assert (await gateway.chat("busy")).status_code == 418
    busy.presence.in_flight = 100
    said = await until(lambda: _answers(gateway, "busy"))
    assert said["choices"][0]["message"]["content"] == answer("busy", "x", 2)


async def test_a_deployment_goes_over_to_what_is_ready_at_a_peer(several: Several) -> None:
    gateway = several.gateway
    gateway.control_plane.deploy("moving", ("echoes", 1))
    assert (await gateway.chat("moving")).json()["headers"][FORWARDED] == "echoes"
    gateway.control_plane.deploy("moving", ("model_loading", 1))
    await until(lambda: _has_moved(gateway))


async def test_the_control_plane_hears_what_others_are_to_know(several: Several) -> None:
    told = several.gateway.control_plane.presence
    assert told is not None
    assert (told.address, told.has_room) == ("http://127.0.0.1:9", True)
    assert told.name.endswith(":8010")


async def test_a_gateway_without_an_address_asks_nobody(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        revision = gateway.add_adapter("mine", "mine", checkpoint=True)
        gateway.control_plane.peers = [_peer("gone", f"http://127.0.0.1:{free_ports(1)[0]}", [revision])]
        assert (await gateway.chat("mine", max_tokens=1)).status_code == 200
        await until(lambda: gateway.control_plane.replicas)
        assert gateway.control_plane.presence is None
        assert (await gateway.http.get("/health")).json()["peers"] == []
