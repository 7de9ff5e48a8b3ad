"""A gateway takes on a bounded number of requests, and a busy model leaves room for the others."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.inference.gateway import BASE, GatewayUnderTest, gateway_on_simulator, until
from tunesmith_inference.admission import Admission
from tunesmith_inference.errors import GatewayError


def _taken(admission: Admission, held: contextlib.ExitStack, model: str, requests: int) -> int:
    """How many of so many requests are taken on."""
    taken = 0
    for _ in range(requests):
        with contextlib.suppress(GatewayError):
            held.enter_context(admission.admit(model))
            taken += 1
    return taken


def test_one_model_alone_may_have_it_all() -> None:
    with contextlib.ExitStack() as held:
        assert _taken(Admission(8), held, "a", 20) == 8


def test_a_busy_model_leaves_the_others_their_share() -> None:
    admission = Admission(8)
    with contextlib.ExitStack() as held:
        assert _taken(admission, held, "a", 6) == 6
        assert _taken(admission, held, "b", 1) == 1
        assert _taken(admission, held, "a", 1) == 0, "it has more than half already"
        assert _taken(admission, held, "b", 9) == 1
    assert _taken(admission, contextlib.ExitStack(), "a", 1) == 1


def test_nothing_is_kept_of_models_that_nobody_asks_for() -> None:
    admission = Admission(4)
    with contextlib.ExitStack() as held:
        _taken(admission, held, "a", 3)
    with contextlib.ExitStack() as held:
        assert _taken(admission, held, "b", 9) == 4


async def test_who_comes_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path, max_requests=2) as gateway:
        slow = [asyncio.create_task(gateway.chat(BASE, "fault:slow", max_tokens=40)) for _ in range(2)]
        await until(lambda: _both_under_way(gateway))
        refused = await gateway.chat(BASE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert [response.status_code for response in await asyncio.gather(*slow)] == [200, 200]
        assert (await gateway.chat(BASE)).status_code == 200


async def _both_under_way(gateway: GatewayUnderTest) -> bool:
    return f'tunesmith_gateway_model_in_flight{{model="{BASE}"}} 2.0' in (await gateway.http.get("/metrics")).text


def test_the_error_tells_when_to_come_back() -> None:
    admission = Admission(1)
    with admission.admit("a"), pytest.raises(GatewayError) as caught, admission.admit("a"):
        pass
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "overloaded", 1)
