"""What one engine serves: newcomers are proven beside what is there, and an engine that has gone wrong is replaced."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.inference.gateway import (
    BASE,
    GatewayUnderTest,
    adapter_files,
    answer,
    gateway_on_simulator,
    servable,
    until,
)
from tunesmith_proto.registry.v1 import serving_pb2


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith_inference.engine._FIRST_BACKOFF_SECONDS", 0.01)


async def test_a_newcomer_that_spoils_others_answers_is_refused_and_they_stay(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_adapter("good", "good", checkpoint=True)
        await _answers(gateway, "good")
        leaky = gateway.add_adapter("leaky", "fault:leaks")
        assert "the adapter r-" in await until(lambda: _refused(gateway, leaky))
        assert (await gateway.chat("leaky")).json()["error"]["code"] == "model_failed_verification"
        await _answers(gateway, "good")
        assert len(gateway.started) == 1, "nothing is wrong with the engine"


async def test_an_engine_whose_proven_adapter_answers_wrongly_by_itself_is_replaced(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        good = gateway.add_adapter("good", "good", checkpoint=True)
        await _answers(gateway, "good")
        gateway.add_adapter("evil", "fault:overwrites", checkpoint=True)
        assert (await gateway.chat("evil")).status_code == 200, "a new engine has only this one"
        assert len(gateway.started) == 2
        told = await until(lambda: _told(gateway, good, serving_pb2.REPLICA_STATE_FAILED))
        assert "answered as recorded before" in told.reason
        await _answers(gateway, "good")
        assert (await _adapters(gateway))[good[:16]] == "ready"


async def test_one_that_goes_on_breaking_engines_is_refused(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_adapter("good", "good")
        await _answers(gateway, "good")
        evil = gateway.add_adapter("evil", "fault:overwrites")
        reason = await until(lambda: _refused(gateway, evil))
        assert "stop answering as they should" in reason
        assert len(gateway.started) == 3
        await _answers(gateway, "good")
        assert (await gateway.chat("evil")).json()["error"]["code"] == "model_failed_verification"


async def test_the_adapters_used_last_are_asked_beside_a_newcomer_and_no_more_of_them(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        revisions = []
        for name in ("one", "two", "three", "four"):
            revisions.append(gateway.add_adapter(name, name, checkpoint=True))
            await _answers(gateway, name)
        before = (await gateway.simulator())["asked"]
        gateway.add_adapter("new", "new", checkpoint=True)
        await _answers(gateway, "new")
        after = (await gateway.simulator())["asked"]
        asked = [after[name] - before[name] for name in (f"r-{revision[:16]}" for revision in revisions)]
        assert asked == [0, 1, 1, 1]


async def test_an_adapter_that_cannot_be_had_fails_after_a_while_until_it_is_asked_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith_inference.retries.PAUSES", (0.01,) * 5)
    async with gateway_on_simulator(tmp_path) as gateway:
        revision = gateway.add_adapter("mine", "mine")
        files = gateway.control_plane.revisions.pop(revision)
        assert "could not be fetched" in await until(lambda: _refused(gateway, revision))
        gateway.control_plane.revisions[revision] = files
        told = await until(lambda: _told(gateway, revision, serving_pb2.REPLICA_STATE_FAILED))
        assert "could not be fetched" in told.reason
        gateway.control_plane.deploy("bot", ("mine", 1))
        await until(lambda: _told(gateway, revision, serving_pb2.REPLICA_STATE_READY))


async def test_why_an_adapter_is_tried_again_can_be_read_and_others_do_not_wait_for_it(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        late = gateway.control_plane.add_revision(adapter_files("late"))
        del gateway.control_plane.revisions[late]
        gateway.control_plane.upsert(servable("late", late, serving_pb2.SERVABLE_KIND_ADAPTER, created=2_000_000_000))
        gateway.add_adapter("good", "good")
        await _answers(gateway, "good")
        told = await until(lambda: _told(gateway, late, serving_pb2.REPLICA_STATE_FETCHING, "could not be fetched"))
        assert (await _adapters(gateway))[late[:16]] == f"fetching: {told.reason}"


async def test_an_adapter_without_a_name_drains_and_counts_its_requests(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        revision = gateway.add_adapter("mine", "mine")
        await _answers(gateway, "mine")
        slow = asyncio.create_task(gateway.chat("mine", "fault:slow", max_tokens=40))
        await until(gateway.running)
        gateway.control_plane.delete("mine")
        told = await until(lambda: _told(gateway, revision, serving_pb2.REPLICA_STATE_DRAINING))
        assert told.in_flight == 1
        assert f"r-{revision[:16]}" in (await gateway.simulator())["adapters"], "it answers a request still"
        assert (await slow).status_code == 200
        await until(lambda: _unloaded(gateway, revision))


async def test_an_engine_is_not_asked_for_more_adapters_than_it_computes_at_once(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path, max_loras=2) as gateway:
        for name in ("one", "two", "three"):
            gateway.add_adapter(name, name, checkpoint=True)
            await _answers(gateway, name)
        slow = [asyncio.create_task(gateway.chat(name, "fault:slow", max_tokens=40)) for name in ("one", "two")]
        await until(lambda: gateway.works_on(2))
        await _answers(gateway, "three")
        assert any(task.done() for task in slow)
        assert {(await task).status_code for task in slow} == {200}


async def test_a_newcomer_is_proven_in_its_turn_beside_as_many_busy_adapters_as_there_are_places(
    tmp_path: Path,
) -> None:
    """Engines that compute so many at once would leave its proof waiting for as long as the others have requests."""
    async with gateway_on_simulator(tmp_path, max_loras=2) as gateway:
        for name in ("one", "two"):
            gateway.add_adapter(name, name, checkpoint=True)
            await _answers(gateway, name)
        busy = [asyncio.create_task(gateway.chat(name, "fault:long")) for name in ("one", "two")]
        await until(lambda: gateway.works_on(2))
        newcomer = f"r-{gateway.add_adapter('three', 'three', checkpoint=True)[:16]}"
        coming = asyncio.create_task(_answers(gateway, "three"))
        await until(lambda: _is_loaded(gateway, newcomer))
        assert newcomer not in (await gateway.simulator())["asked"]
        busy[0].cancel()
        await coming
        busy[1].cancel()
        await asyncio.wait(busy)


async def test_an_engine_that_restarted_gets_no_traffic_until_what_is_deployed_is_back(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        names = [f"model-{number}" for number in range(4)]
        for name in names:
            gateway.add_adapter(name, name, checkpoint=True)
        gateway.control_plane.deploy("bot", *((name, 1) for name in names))
        await until(lambda: _has(gateway, len(names)))
        await gateway.chat(BASE, "fault:die")
        assert (await gateway.chat(BASE)).status_code == 200
        assert await _has(gateway, len(names)), "the first answer came when all were there"


async def _answers(gateway: GatewayUnderTest, model: str) -> None:
    response = await gateway.chat(model, "one", max_tokens=2)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == answer(model, "one", 2)


async def _is_loaded(gateway: GatewayUnderTest, adapter: str) -> bool:
    return adapter in (await gateway.simulator())["adapters"]


async def _adapters(gateway: GatewayUnderTest) -> dict[str, str]:
    engines = await gateway.engines()
    adapters: dict[str, str] = engines[0]["adapters"] if engines else {}
    return adapters


async def _refused(gateway: GatewayUnderTest, revision: str) -> str:
    adapters = await _adapters(gateway)
    return next((state for name, state in adapters.items() if name == revision[:16] and "not served" in state), "")


def _told(gateway: GatewayUnderTest, revision: str, state: Any, reason: str = "") -> serving_pb2.Replica | None:
    found = [
        one
        for one in gateway.control_plane.replicas
        if (one.revision, one.state) == (revision, state) and reason in one.reason
    ]
    return found[0] if found else None


async def _unloaded(gateway: GatewayUnderTest, revision: str) -> bool:
    return f"r-{revision[:16]}" not in (await gateway.simulator())["adapters"]


async def _has(gateway: GatewayUnderTest, adapters: int) -> bool:
    """Whether all are ready, in an engine that is."""
    held = [engine["adapters"].values() for engine in await gateway.engines() if engine["state"] == "ready"]
    return [list(states).count("ready") for states in held] == [adapters]
