"""Several gateways serve as one on several control planes: each model lives in one of them, whichever is asked.

kill -9 of one under load: the other answers what had not begun to stream, and soon has its models.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.inference.gateway import answer, until
from tests.support.cut_stream import cut
from tests.support.live_server import LiveServer
from tests.support.postgres import PostgresServer
from tests.support.several_gateways import RunningGateway, SeveralGateways, chat_body, several_gateways

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

MODELS = 20  # with 12, one gateway is the home of them all in one run of 2,048
WORKERS = 12
TOKENS = 6
LONG: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "fault:long"}]},
    "/v1/completions": {"prompt": "fault:long"},
    "/v1/responses": {"input": "fault:long"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[SeveralGateways]:
    """Two gateways and two control planes with their models, all loaded ahead of demand."""
    folder: Path = tmp_path_factory.mktemp("gateways")
    async with several_gateways(folder, postgres.create_database()) as made:
        await made.until_they_know_each_other()
        for number in range(MODELS):
            await made.publish(f"ft:{number}", str(number))
        await until(lambda: _all_are_loaded(made), 60)
        yield made


async def test_each_model_is_loaded_by_one_gateway_whichever_is_asked(running: SeveralGateways) -> None:
    for number, gateway in itertools.product(range(MODELS), running.gateways):
        said = await gateway.chat(f"ft:{number}", max_tokens=3)
        assert said.status_code == 200, said.text
        assert said.json()["choices"][0]["message"]["content"] == answer(str(number), "hello there", 3)
    first, second = [await each.adapters() for each in running.gateways]
    assert (len(first | second), first & second) == (MODELS, set())
    assert min(len(first), len(second)) > 0
    # One for the base model.
    assert [(await each.engine())["loads"] for each in running.gateways] == [len(first) + 1, len(second) + 1]
    assert [await each.forwarded("answered") for each in running.gateways] == [len(second), len(first)]


async def test_every_control_plane_tells_where_a_model_is(running: SeveralGateways) -> None:
    # The last model is loaded before its gateway has told of it.
    told = await until(lambda: _told_ready(running))
    where = [[replica["gateway"] for replica in serving["replicas"]] for serving in told[0]]
    assert ({len(each) for each in where}, len({each[0] for each in where})) == ({1}, 2)
    assert told[0] == told[1]


async def test_models_with_an_engine_of_their_own_go_where_there_is_room(running: SeveralGateways) -> None:
    for number in range(2):
        await running.publish(f"ft:full-{number}", f"full {number}", full=True)
    for number, gateway in itertools.product(range(2), running.gateways):
        said = await gateway.chat(f"ft:full-{number}", max_tokens=3)
        assert said.json()["choices"][0]["message"]["content"] == answer(f"full {number}", "hello there", 3)
    kinds = [[engine["kind"] for engine in (await each.health())["engines"]] for each in running.gateways]
    assert kinds == [["base", "full"]] * 2


async def test_who_leaves_a_stream_ends_it_in_the_engine_of_the_other_gateway(running: SeveralGateways) -> None:
    asked, other = running.gateways
    model = await running.model_of(other)
    aborted = (await other.engine())["aborted"]
    body = chat_body(model, "fault:long", stream=True)
    async with asked.http.stream("POST", "/v1/chat/completions", json=body) as events:
        lines = events.aiter_lines()
        assert (await anext(lines)).startswith("data: {")
        assert (await other.engine())["running"] == 1
    await until(lambda: _is_idle(other))
    assert (await other.engine())["aborted"] == aborted + 1


async def test_whatever_had_not_begun_to_stream_is_answered_by_the_other(running: SeveralGateways) -> None:
    survivor, victim = running.gateways
    alone = await running.model_of(victim)
    load = Load(survivor, [f"ft:{number}" for number in range(MODELS) if f"ft:{number}" != alone])
    working = [asyncio.create_task(load.run()) for _ in range(WORKERS)]
    begun = asyncio.Semaphore(0)
    streams = [asyncio.create_task(cut(survivor.http, route, {"model": alone, **LONG[route]}, begun)) for route in LONG]
    for _ in streams:
        await begun.acquire()
    await until(lambda: load.outcomes.total() > 4 * WORKERS)
    name = running.engine_name(alone)
    asked = (await victim.engine())["asked"][name]
    under_way = [asyncio.create_task(load.whole(alone, 40)) for _ in range(3)]
    # Half of these come in at the victim itself.
    entering = [asyncio.create_task(_through_control_plane(running, alone, 40)) for _ in range(4)]
    await until(lambda: _was_asked(victim, name, asked + len(under_way) + len(entering)))
    victim.kill()

    assert await asyncio.gather(*under_way) == ["whole"] * len(under_way)
    assert await asyncio.gather(*entering) == [_right(alone, 40)] * len(entering)
    assert await asyncio.gather(*streams) == ["engine_error"] * len(LONG)
    await until(lambda: _holds(survivor, MODELS), 60)
    load.ended = True
    await asyncio.gather(*working)
    assert set(load.outcomes) <= {"whole", "streamed", "engine_error"}
    # Streams whose first token was out: no more of them than were under way.
    assert load.outcomes["engine_error"] <= WORKERS
    assert await survivor.forwarded("lost") >= len(under_way)


async def test_a_gateway_that_comes_back_is_asked_again_and_leaves_models_where_they_are(
    running: SeveralGateways,
) -> None:
    survivor, victim = running.gateways
    victim.start()
    await running.until_they_know_each_other()
    await until(lambda: _is_asked(survivor))
    for number in range(MODELS):
        assert (await victim.chat(f"ft:{number}", max_tokens=1)).status_code == 200
    assert (await victim.adapters(), await victim.forwarded("answered")) == (set(), MODELS)


async def test_a_gateway_that_is_told_to_stop_loses_nothing_and_is_left_out(running: SeveralGateways) -> None:
    leaving, asked = running.gateways
    load = Load(asked, [f"ft:{number}" for number in range(MODELS)])
    working = [asyncio.create_task(load.run()) for _ in range(WORKERS)]
    await until(lambda: load.outcomes.total() > WORKERS)
    stopping = asyncio.create_task(asyncio.to_thread(leaving.stop))
    await until(lambda: _is_alone(asked))
    await stopping
    before = load.outcomes.total()
    await until(lambda: load.outcomes.total() > before + 2 * MODELS)
    load.ended = True
    await asyncio.gather(*working)
    assert load.outcomes.keys() == {"whole", "streamed"}


class Load:
    """Requests to one gateway, half of them streamed, and what came of them."""

    def __init__(self, gateway: RunningGateway, models: list[str]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.ended = False
        self._gateway = gateway
        self._models = models
        self._turns = itertools.count()

    async def run(self) -> None:
        """Asks all models in turn until told to end; AssertionError for a wrong answer or none."""
        while not self.ended:
            turn = next(self._turns)
            ask = self._streamed if turn // len(self._models) % 2 else self.whole
            self.outcomes[await ask(self._models[turn % len(self._models)], TOKENS)] += 1

    async def whole(self, model: str, tokens: int) -> str:
        """Asks for an answer in one piece, which no fault may keep from its client."""
        said = await self._gateway.chat(model, "fault:slow", max_tokens=tokens)
        assert said.status_code == 200, said.text
        assert said.json()["choices"][0]["message"]["content"] == _right(model, tokens)
        return "whole"

    async def _streamed(self, model: str, tokens: int) -> str:
        body = chat_body(model, "fault:slow", max_tokens=tokens, stream=True)
        said, last = "", ""
        async with self._gateway.http.stream("POST", "/v1/chat/completions", json=body) as events:
            assert events.status_code == 200, await events.aread()
            async for line in events.aiter_lines():
                last = line.removeprefix("data: ") or last
                if not line or last == "[DONE]":
                    continue
                chunk = json.loads(last)
                if "error" in chunk:
                    return str(chunk["error"]["code"])
                said += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        assert last == "[DONE]", "a stream ends with [DONE] or with an error, never in silence"
        assert said == _right(model, tokens)
        return "streamed"


def _right(model: str, tokens: int) -> str:
    return answer(model.removeprefix("ft:"), "fault:slow", tokens)


async def _through_control_plane(running: SeveralGateways, model: str, tokens: int) -> str:
    """What is said to whoever asks the one address that all clients are told."""
    body = chat_body(model, "fault:slow", max_tokens=tokens)
    said = await asyncio.to_thread(running.control_planes[0].request, "POST", "/chat/completions", json=body)
    assert said.status_code == 200, said.text
    content: str = said.json()["choices"][0]["message"]["content"]
    return content


async def _all_are_loaded(running: SeveralGateways) -> bool:
    return sum([len(await each.adapters()) for each in running.gateways]) == MODELS


async def _told_ready(running: SeveralGateways) -> list[list[dict[str, Any]]] | None:
    """What each control plane tells of all models, but for what is under way, once all of them are ready."""

    def told(server: LiveServer) -> list[dict[str, Any]]:
        shown = [server.request("GET", f"/models/ft:{number}").json()["serving"] for number in range(MODELS)]
        return [each | {"replicas": [_without_load(replica) for replica in each["replicas"]]} for each in shown]

    each = await asyncio.gather(*(asyncio.to_thread(told, server) for server in running.control_planes))
    return each if all(serving["state"] == "ready" for one in each for serving in one) else None


def _without_load(replica: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in replica.items() if name != "in_flight"}


async def _is_idle(gateway: RunningGateway) -> bool:
    return bool((await gateway.engine())["running"] == 0)


async def _was_asked(gateway: RunningGateway, model: str, times: int) -> bool:
    return bool((await gateway.engine())["asked"][model] == times)


async def _holds(gateway: RunningGateway, models: int) -> bool:
    return len(await gateway.adapters()) == models


async def _is_alone(gateway: RunningGateway) -> bool:
    said = await gateway.health()
    return bool(said["engines"]) and not said["peers"]


async def _is_asked(gateway: RunningGateway) -> bool:
    return [peer["asked"] for peer in (await gateway.health())["peers"]] == [True]
