"""What is served from where, through the whole gateway on simulated engines: loads, bounds, proofs, deaths."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Set
from pathlib import Path
from typing import Any

import pytest

from tests.inference.gateway import (
    BASE,
    GatewayUnderTest,
    adapter_files,
    answer,
    engine_http,
    full_files,
    gateway_on_simulator,
    golden,
    make_base,
    servable,
    until,
)
from tunesmith_inference import retries
from tunesmith_inference.engine_host import EngineHost
from tunesmith_inference.engine_memory import GIBIBYTE
from tunesmith_proto.registry.v1 import serving_pb2


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSES", (0.01,) * 5)


async def test_final_adapters_are_loaded_before_anyone_asks_and_checkpoints_when_asked(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        final = gateway.add_adapter("final", "final")
        checkpoint = gateway.add_adapter("final:ckpt-step-1", "checkpoint", checkpoint=True)
        adapters = await until(lambda: _adapters(gateway, 1))
        assert adapters == {final[:16]: "ready"}
        response = await gateway.chat("final:ckpt-step-1", "one", max_tokens=3)
        assert response.json()["choices"][0]["message"]["content"] == answer("checkpoint", "one", 3)
        assert (await _adapters(gateway, 2))[checkpoint[:16]] == "ready"


async def test_a_revision_asked_for_by_many_at_once_is_loaded_once(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_adapter("mine", "tuned", checkpoint=True)
        answers = await asyncio.gather(*(gateway.chat("mine") for _ in range(10)))
        assert {response.status_code for response in answers} == {200}
        assert gateway.control_plane.downloads == len(adapter_files("tuned"))
        assert (await gateway.simulator())["loads"] == 2


async def test_a_base_model_comes_from_the_control_plane_where_the_cache_is_not_shared(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path / "cache") as gateway:
        files = {path.name: path.read_bytes() for path in make_base(tmp_path, "0" * 64).iterdir()}
        revision = gateway.control_plane.add_revision(files)
        identity = {"project_id": "", "base_revision": revision, "base_model_id": "far"}
        gateway.control_plane.upsert(servable("far", revision, serving_pb2.SERVABLE_KIND_BASE, **identity))
        assert (await gateway.chat("far", "one", max_tokens=2)).status_code == 200
        assert gateway.control_plane.downloads == len(files)


async def test_base_requests_go_through_a_zero_adapter_on_engines_that_mix_batches_up(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        assert (await gateway.chat(BASE, "one", max_tokens=2)).status_code == 200
        assert (await gateway.simulator())["asked"] == {"zero": 1}


async def test_the_least_recently_used_adapter_makes_room(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path, max_loaded_adapters=3) as gateway:
        for name in ("one", "two", "three"):
            gateway.add_adapter(name, name, checkpoint=True)
            assert (await gateway.chat(name)).status_code == 200
            await gateway.chat("one")
        loaded = (await gateway.simulator())["adapters"]
        assert len(loaded) == 3
        assert len(await _adapters(gateway, 2)) == 2
        response = await gateway.chat("two", "x", max_tokens=2)
        assert response.json()["choices"][0]["message"]["content"] == answer("two", "x", 2)


@pytest.mark.parametrize(
    "files",
    [
        {"golden.json": golden("other")},
        {"golden.json": b"{}"},
        {"adapter_config.json": json.dumps({"peft_type": "LORA", "r": 64}).encode()},
        {"adapter_model.bin": b"pickle"},
    ],
)
async def test_what_is_not_proven_is_never_served_and_says_why(tmp_path: Path, files: dict[str, bytes]) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        revision = gateway.add_adapter("mine", "tuned", files=files)
        for _ in range(2):
            response = await gateway.chat("mine")
            assert (response.status_code, response.json()["error"]["code"]) == (503, "model_failed_verification")
            assert response.headers["retry-after"] == "60"
        assert (await _adapters(gateway, 1))[revision[:16]].startswith("not served: ")
        assert (await gateway.simulator())["adapters"] == ["zero"]
        assert (await gateway.chat(BASE)).status_code == 200


async def test_a_request_is_held_until_the_files_can_be_had(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        files = adapter_files("tuned")
        revision = gateway.add_adapter("mine", "tuned", checkpoint=True)
        del gateway.control_plane.revisions[revision]
        asked = asyncio.create_task(gateway.chat("mine"))
        await until(lambda: _adapters(gateway, 1))
        gateway.control_plane.revisions[revision] = files
        response = await asked
        assert response.status_code in (200, 503)
        assert (await gateway.chat("mine")).status_code == 200


async def test_a_request_is_not_held_for_ever(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path, hold_seconds=0.2) as gateway:
        (tmp_path / "base_models").rename(tmp_path / "elsewhere")
        response = await gateway.chat(BASE)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (503, "model_loading", "model")
        assert response.headers["retry-after"] == "5"


async def test_a_base_model_that_is_imported_later_is_waited_for(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        (tmp_path / "base_models").rename(tmp_path / "elsewhere")
        asked = asyncio.create_task(gateway.chat(BASE))
        await until(lambda: _engine_states(gateway, ["starting"]))
        (tmp_path / "elsewhere").rename(tmp_path / "base_models")
        assert (await asked).status_code == 200


async def test_full_weights_have_an_engine_of_their_own_and_the_idle_one_makes_room(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        assert (await gateway.chat(BASE)).status_code == 200
        for name in ("full-1", "full-2"):
            gateway.add_full(name, name)
            response = await gateway.chat(name, text="one", max_tokens=2)
            assert response.json()["model"] == name
            assert response.json()["choices"][0]["message"]["content"] == answer(name, "one", 2)
        engines = await gateway.engines()
        assert [engine["kind"] for engine in engines] == ["base", "full"]
        assert [name.split("-")[0] for name, _ in gateway.started] == ["base", "full", "full"]


@pytest.mark.parametrize(
    "files", [{"golden.json": golden("other")}, {"config.json": b'{"architectures": ["DoesNotStart"]}'}]
)
async def test_full_weights_that_are_not_proven_are_never_served(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith_inference.engine._FIRST_BACKOFF_SECONDS", 0.01)
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_full("full", "full", **files)
        response = await gateway.chat("full")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_failed_verification")
        assert {"failed"} == {engine["state"] for engine in await gateway.engines() if engine["kind"] == "full"}


async def test_an_engine_that_dies_comes_back_with_its_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith_inference.engine._FIRST_BACKOFF_SECONDS", 0.01)
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_adapter("mine", "tuned")
        assert (await gateway.chat("mine")).status_code == 200
        died = await gateway.chat("mine", "fault:die")
        assert (died.status_code, died.json()["error"]["code"]) == (500, "engine_error")
        await until(lambda: _engine_states(gateway, ["starting"]))
        response = await gateway.chat("mine", "one", max_tokens=2)
        assert response.json()["choices"][0]["message"]["content"] == answer("tuned", "one", 2)
        assert (await gateway.engines())[0]["starts"] == 3, "the request was tried once more"
        logs = [path.name for path in (tmp_path / "engine_logs").iterdir()]
        assert sorted(name.partition(".")[2] for name in logs) == ["log", "log.1"], "of the one that died as well"


async def test_an_engine_that_fails_on_every_request_is_replaced_and_one_that_met_bad_requests_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith_inference.engine._PROBE_SECONDS", 0.05)
    monkeypatch.setattr("tunesmith_inference.engine._FIRST_BACKOFF_SECONDS", 0.01)
    async with gateway_on_simulator(tmp_path) as gateway:
        for _ in range(3):
            assert (await gateway.chat(BASE, "fault:500")).status_code == 500
        name = gateway.started[0][0]
        await until(lambda: _asked(gateway, name))
        assert (await gateway.chat(BASE)).status_code == 200
        assert len(gateway.started) == 1, "it answered a question of ours"
        await gateway.chat(BASE, "fault:broken")
        for _ in range(2):
            await gateway.chat(BASE)
        await until(lambda: len(gateway.started) == 2)
        assert (await gateway.chat(BASE)).status_code == 200


async def test_a_stream_whose_engine_dies_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith_inference.engine._FIRST_BACKOFF_SECONDS", 0.01)
    async with gateway_on_simulator(tmp_path) as gateway:
        response = await gateway.chat(BASE, "fault:die", stream=True, max_tokens=8)
        events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert [bool(json.loads(event).get("choices")) for event in events] == [True, True, True, False]
        assert json.loads(events[-1])["error"]["code"] == "engine_error"
        counted = 'tunesmith_gateway_errors_total{code="engine_error",model="tiny"} 1.0'
        assert counted in (await gateway.http.get("/metrics")).text


async def test_requests_of_an_engine_whose_core_is_killed_are_answered_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine tells them of an internal error; that it is gone as a whole is seen a moment later."""
    monkeypatch.setattr("tunesmith_inference.engine._FIRST_BACKOFF_SECONDS", 0.01)
    async with gateway_on_simulator(tmp_path) as gateway:
        assert (await gateway.chat(BASE)).status_code == 200
        asked = [asyncio.create_task(gateway.chat(BASE, "fault:slow", max_tokens=40)) for _ in range(3)]
        await until(lambda: gateway.works_on(3))
        ((name, socket),) = gateway.started
        async with engine_http(socket) as engine:
            killed = await engine.post("/v1/completions", json={"model": name, "prompt": "fault:core fault:slow"})
        assert killed.status_code == 500
        assert [response.status_code for response in await asyncio.gather(*asked)] == [200] * 3
        assert len(gateway.started) == 2


async def test_a_restart_of_the_control_plane_is_not_noticed(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_adapter("mine", "tuned")
        assert (await gateway.chat("mine")).status_code == 200
        await gateway.control_plane.stop()
        assert (await gateway.chat("mine")).status_code == 200
        headers = {"authorization": "Bearer never-seen"}
        unknown = await gateway.http.post("/v1/chat/completions", headers=headers, json={})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "control_plane_unavailable")


async def test_a_deleted_model_is_unloaded_when_its_last_request_has_ended(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_adapter("kept", "kept")
        gateway.add_adapter("mine", "tuned")
        assert (await gateway.chat("mine")).status_code == 200
        slow = asyncio.create_task(gateway.chat("mine", "fault:slow", max_tokens=40))
        await until(lambda: _in_flight(gateway))
        gateway.control_plane.delete("mine")
        await until(lambda: _status(gateway, "mine", 404))
        assert len(await _adapters(gateway, 2)) == 2, "it answers a request still"
        assert (await slow).status_code == 200
        await until(lambda: _loaded(gateway, 2))
        assert (await gateway.chat("kept")).status_code == 200


async def test_an_engine_stays_that_was_asked_for_before_the_news_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith_inference.fleet._NEWS_SECONDS", 60.0)
    async with gateway_on_simulator(tmp_path) as gateway:
        revision = gateway.control_plane.add_revision(full_files("early"))
        early = servable("early", revision, serving_pb2.SERVABLE_KIND_FULL)
        # The control plane has it, and the feed does not yet.
        gateway.control_plane.models["early"] = early
        assert (await gateway.chat("early")).status_code == 200
        # Once this one is there, engines have been held against the names.
        gateway.add_adapter("later", "later")
        await until(lambda: _adapters(gateway, 1))
        gateway.control_plane.upsert(early)
        assert (await gateway.chat("early")).status_code == 200
        assert len([name for name, _ in gateway.started if name.startswith("full")]) == 1


async def test_an_adapter_that_the_engine_has_lost_is_loaded_and_proven_again(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        revision = gateway.add_adapter("mine", "tuned", checkpoint=True)
        assert (await gateway.chat("mine")).status_code == 200
        await gateway.forget(revision)
        response = await gateway.chat("mine", "one", max_tokens=2)
        assert response.json()["choices"][0]["message"]["content"] == answer("tuned", "one", 2)
        assert (await gateway.simulator())["loads"] == 3, "the zero adapter, and twice this one"


async def test_engines_are_held_against_what_they_should_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith_inference.fleet._LOOK_SECONDS", 0.05)
    async with gateway_on_simulator(tmp_path) as gateway:
        revision = gateway.add_adapter("mine", "tuned")
        await until(lambda: _adapters(gateway, 1))
        await gateway.forget(revision)
        await until(lambda: _loaded(gateway, 2))
        await until(lambda: _adapters(gateway, 1))


async def test_engines_of_deleted_models_and_of_idle_ones_are_stopped_and_come_back(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path, max_engines=3, engine_idle_seconds=0.2) as gateway:
        gateway.add_full("idle", "idle")
        gateway.add_full("pinned", "pinned")
        gateway.control_plane.deploy("bot", ("pinned", 1), pinned=True)
        for _ in range(2):
            response = await gateway.chat("idle", "one", max_tokens=2)
            assert response.json()["choices"][0]["message"]["content"] == answer("idle", "one", 2)
            assert (await gateway.chat("pinned")).status_code == 200
            await until(lambda: _engine_states(gateway, ["ready", "ready"]))
        gateway.control_plane.undeploy("bot")
        gateway.control_plane.delete("pinned")
        await until(lambda: _engine_states(gateway, ["ready"]))


async def test_an_engine_that_makes_room_while_another_is_looked_at_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, answered, reconcile = asyncio.Event(), asyncio.Event(), EngineHost.reconcile

    async def slowly(host: EngineHost, revisions: Set[str]) -> None:
        looking.set()
        await answered.wait()
        await reconcile(host, revisions)

    async with gateway_on_simulator(tmp_path, max_engines=2) as gateway:
        gateway.add_full("one", "one")
        assert [(await gateway.chat(name)).status_code for name in (BASE, "one")] == [200, 200]
        monkeypatch.setattr(EngineHost, "reconcile", slowly)
        monkeypatch.setattr("tunesmith_inference.fleet._NEWS_SECONDS", 0)
        gateway.control_plane.delete("one")
        await looking.wait()
        gateway.add_full("two", "two")
        assert (await gateway.chat("two")).status_code == 200
        looking.clear()
        answered.set()
        await looking.wait()
        assert [(await gateway.chat(name)).status_code for name in (BASE, "two")] == [200, 200]


async def test_engines_share_a_memory_budget_and_the_least_used_one_makes_room(tmp_path: Path) -> None:
    budget = 3 * (2 * GIBIBYTE + 4096)  # three engines of 1 GiB for keys and values and 1 GiB for themselves
    async with gateway_on_simulator(tmp_path, max_engines=9, engine_memory_bytes=budget) as gateway:
        assert (await gateway.chat(BASE)).status_code == 200
        for name in ("one", "two", "one", "three"):
            gateway.control_plane.models.get(name) or gateway.add_full(name, name)
            response = await gateway.chat(name, "x", max_tokens=2)
            assert response.json()["choices"][0]["message"]["content"] == answer(name, "x", 2)
            assert len(await gateway.engines()) <= 3
        assert [name.split("-")[0] for name, _ in gateway.started] == ["base", "full", "full", "full"]
        assert (await gateway.chat("one")).status_code == 200
        assert len(gateway.started) == 4, "the one used least was stopped"


async def test_what_is_deployed_but_does_not_fit_waits_to_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith_inference.fleet._LOOK_SECONDS", 0.05)
    budget = 2 * (2 * GIBIBYTE + 4096)
    async with gateway_on_simulator(tmp_path, max_engines=9, engine_memory_bytes=budget) as gateway:
        for name in ("one", "two"):
            gateway.add_full(name, name)
            gateway.control_plane.deploy(f"bot-{name}", (name, 1), pinned=True)
            assert (await gateway.chat(name)).status_code == 200
        started = len(gateway.started)
        for _ in range(10):
            await gateway.engines()
            gateway.control_plane.deploy("bot-two", ("two", 1), pinned=True)
            await gateway.chat("two")
        assert len(gateway.started) == started, "engines do not push each other out without a request"

        gateway.add_full("three", "three")  # nobody knows yet how much memory it needs
        gateway.control_plane.deploy("bot-three", ("three", 1), pinned=True)
        for _ in range(20):
            assert (await gateway.chat("one")).status_code == (await gateway.chat("two")).status_code == 200
        assert len(gateway.started) == started, "nor does one that is new"
        assert (await gateway.chat("three")).status_code == 200


async def _in_flight(gateway: GatewayUnderTest) -> bool:
    return 'tunesmith_gateway_model_in_flight{model="mine"} 1.0' in (await gateway.http.get("/metrics")).text


async def _status(gateway: GatewayUnderTest, model: str, status: int) -> bool:
    return (await gateway.chat(model)).status_code == status


async def _asked(gateway: GatewayUnderTest, name: str) -> bool:
    return bool((await gateway.simulator())["asked"].get(name))


async def _loaded(gateway: GatewayUnderTest, adapters: int) -> bool:
    """Whether the engine itself has so many, the zero adapter among them."""
    return len((await gateway.simulator())["adapters"]) == adapters


async def _adapters(gateway: GatewayUnderTest, count: int) -> dict[str, Any]:
    """The base engine's adapters once there are so many that are not loading any more."""
    engines = await gateway.engines()
    adapters = engines[0]["adapters"] if engines else {}
    under_way = ("fetching", "loading", "probing")
    settled = {revision: state for revision, state in adapters.items() if state not in under_way}
    return settled if len(settled) >= count else {}


async def _engine_states(gateway: GatewayUnderTest, states: list[str]) -> bool:
    return [engine["state"] for engine in await gateway.engines()] == states
