"""Deployments: who gets which model, when a gateway goes over to other ones, and that no request is lost meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.inference.gateway import GatewayUnderTest, answer, gateway_on_simulator, until
from tunesmith_inference.errors import GatewayError
from tunesmith_inference.router import Deployment, Kind, Names, Servable
from tunesmith_inference.switch import Switch


def _names(*targets: tuple[str, int], version: int = 1, gone: str = "") -> Names:
    made = (Servable(name, "p1", Kind.ADAPTER, name * 64, "tiny", "b" * 64, 0, checkpoint=False) for name in "abc")
    deployment = Deployment("p1", "bot", version, targets, pinned=False)
    return Names({model.name: model for model in made if model.name != gone}, {("p1", "bot"): deployment})


def _asked(switch: Switch, names: Names, requests: int = 1) -> Counter[str]:
    return Counter(switch.route(names, "bot", "p1", None).name for _ in range(requests))


def test_requests_are_shared_out_by_weight() -> None:
    names = _names(("a", 3), ("b", 1), ("c", 0))
    counted = _asked(Switch(lambda model: True), names, 4000)
    assert set(counted) == {"a", "b"}
    assert 800 < counted["b"] < 1200


def test_an_end_user_stays_with_one_model_and_end_users_are_shared_out() -> None:
    switch, names = Switch(lambda model: True), _names(("a", 1), ("b", 1))
    first = [switch.route(names, "bot", "p1", f"user-{number}").name for number in range(200)]
    assert first == [switch.route(names, "bot", "p1", f"user-{number}").name for number in range(200)]
    assert 60 < first.count("a") < 140


def test_a_new_version_answers_when_its_models_are_ready_and_never_goes_back() -> None:
    ready: set[str] = set()
    switch = Switch(lambda model: model.name in ready)
    assert _asked(switch, _names(("a", 1))) == {"a": 1}, "there is nothing else that could answer"
    second = _names(("b", 1), ("c", 0), version=2)
    assert _asked(switch, second) == {"a": 1}
    ready.add("b")
    assert _asked(switch, second) == {"b": 1}, "one without requests is not waited for"
    ready.clear()
    assert _asked(switch, second) == {"b": 1}


def test_a_model_that_is_gone_is_not_waited_with() -> None:
    switch = Switch(lambda model: False)
    _asked(switch, _names(("a", 1)))
    assert _asked(switch, _names(("b", 1), version=2, gone="a")) == {"b": 1}
    with pytest.raises(GatewayError) as gone:
        _asked(switch, _names(("b", 1), version=3, gone="b"))
    assert gone.value.code == "model_not_found"


def test_the_name_is_its_projects_own() -> None:
    switch, names = Switch(lambda model: True), _names(("a", 1))
    with pytest.raises(GatewayError) as foreign:
        switch.route(names, "bot", "p2", None)
    assert foreign.value.code == "model_not_found"


@contextlib.asynccontextmanager
async def _load(gateway: GatewayUnderTest, streams: int = 8) -> AsyncIterator[list[httpx.Response]]:
    """Asks the deployment without a pause inside the block, from before it begins, and gives every answer."""
    answers: list[httpx.Response] = []
    ended = asyncio.Event()

    async def ask() -> None:
        while not ended.is_set():
            answers.append(await gateway.chat("bot", "one", max_tokens=3))

    asking = [asyncio.create_task(ask()) for _ in range(streams)]
    try:
        await until(lambda: answers)
        yield answers
    finally:
        ended.set()
        await asyncio.gather(*asking)


def _by_model(answers: list[httpx.Response]) -> Counter[str]:
    for response in answers:
        assert response.status_code == 200, response.text
        assert response.json()["model"] == "bot"
        model = response.headers["x-tunesmith-model"]
        assert response.json()["choices"][0]["message"]["content"] == answer(model, "one", 3)
    return Counter(response.headers["x-tunesmith-model"] for response in answers)


async def test_a_switch_and_a_rollback_under_load_lose_no_request(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_adapter("blue", "blue")
        gateway.control_plane.deploy("bot", ("blue", 1))
        async with _load(gateway) as answers:
            for target in ("green", "blue", "green"):
                if target == "green":
                    gateway.add_adapter("green", "green")
                gateway.control_plane.deploy("bot", (target, 1))
                await until(lambda: answers and answers[-1].headers.get("x-tunesmith-model") == target)  # noqa: B023
        assert set(_by_model(answers)) == {"blue", "green"}


async def test_a_model_that_fails_its_proof_never_gets_a_request(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_adapter("blue", "blue")
        gateway.control_plane.deploy("bot", ("blue", 1))
        async with _load(gateway, 2) as answers:
            bad = gateway.add_adapter("green", "green", files={"adapter_model.safetensors": b"other"})
            gateway.control_plane.deploy("bot", ("green", 1))
            await until(lambda: _state(gateway, bad))
            seen = len(answers)
            await until(lambda: len(answers) > seen + 5)
        assert set(_by_model(answers)) == {"blue"}


async def _state(gateway: GatewayUnderTest, revision: str) -> bool:
    return any("not served" in engine["adapters"].get(revision[:16], "") for engine in await gateway.engines())


async def test_full_weights_are_started_beside_what_they_replace(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path, max_engines=2) as gateway:
        gateway.add_adapter("blue", "blue")
        gateway.control_plane.deploy("bot", ("blue", 1))
        async with _load(gateway, 2) as answers:
            gateway.add_full("whole", "whole")
            gateway.control_plane.deploy("bot", ("whole", 1))
            await until(lambda: answers and answers[-1].headers.get("x-tunesmith-model") == "whole")
        assert set(_by_model(answers)) == {"blue", "whole"}


async def test_what_is_pinned_stays_loaded_when_others_are_asked_for(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path, max_loaded_adapters=3) as gateway:
        pinned = gateway.add_adapter("pinned", "pinned", created=1)
        gateway.control_plane.deploy("bot", ("pinned", 1), pinned=True)
        for name in ("x", "y", "z"):
            gateway.add_adapter(name, name, checkpoint=True)
        await until(lambda: _is_loaded(gateway, pinned))
        loads = (await gateway.simulator())["loads"]
        for name in ("x", "y", "z"):
            assert (await gateway.chat(name)).status_code == 200
            assert await _is_loaded(gateway, pinned)
        assert (await gateway.simulator())["loads"] == loads + 3


async def _is_loaded(gateway: GatewayUnderTest, revision: str) -> bool:
    engines = await gateway.engines()
    return bool(engines) and engines[0]["adapters"].get(revision[:16]) == "ready"


async def test_use_and_metrics_are_the_models(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_adapter("blue", "blue")
        gateway.control_plane.deploy("bot", ("blue", 1))
        response = await until(lambda: _answered(gateway))
        assert response.headers["x-tunesmith-model"] == "blue"
        metrics = (await gateway.http.get("/metrics")).text
        assert 'tunesmith_gateway_model_tokens_total{direction="out",model="blue"}' in metrics
        gateway.control_plane.undeploy("bot")
        await until(lambda: _is_unknown(gateway))


async def _answered(gateway: GatewayUnderTest) -> httpx.Response | None:
    response = await gateway.chat("bot", "one", max_tokens=3)
    return response if response.status_code == 200 else None


async def _is_unknown(gateway: GatewayUnderTest) -> bool:
    return (await gateway.chat("bot")).status_code == 404
