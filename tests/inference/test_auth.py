from __future__ import annotations

import asyncio

import pytest

from tests.support.clock import MovableClock
from tunesmith_inference.auth import (
    FRESH_SECONDS,
    OUTAGE_SECONDS,
    Authenticator,
    KeyRejected,
    KeysUnavailable,
    Principal,
)
from tunesmith_inference.errors import GatewayError


class _ControlPlane:
    def __init__(self) -> None:
        self.asked = 0
        self.up = True
        self.keys = {"good": "p1"}
        self.answering = asyncio.Event()
        self.answering.set()
        self.answered = asyncio.Event()

    async def lookup(self, key: str) -> Principal:
        await self.answering.wait()
        self.asked += 1
        self.answered.set()
        if not self.up:
            raise KeysUnavailable
        if key not in self.keys:
            raise KeyRejected
        return Principal(self.keys[key], "key-1")


@pytest.fixture
def control_plane() -> _ControlPlane:
    return _ControlPlane()


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def authenticator(control_plane: _ControlPlane, clock: MovableClock) -> Authenticator:
    return Authenticator(control_plane.lookup, clock)


async def test_a_key_is_asked_for_once_in_a_while(
    authenticator: Authenticator, control_plane: _ControlPlane, clock: MovableClock
) -> None:
    for _ in range(3):
        assert (await authenticator.principal("Bearer good")).project_id == "p1"
    assert control_plane.asked == 1
    clock.advance(FRESH_SECONDS)
    await authenticator.principal("bearer good")
    assert control_plane.asked == 2


async def test_many_requests_at_once_ask_once_and_a_busy_key_is_asked_for_ahead_of_time(
    authenticator: Authenticator, control_plane: _ControlPlane, clock: MovableClock
) -> None:
    await asyncio.gather(*(authenticator.principal("Bearer good") for _ in range(20)))
    assert control_plane.asked == 1
    clock.advance(FRESH_SECONDS - 1)
    control_plane.answering.clear()
    control_plane.answered.clear()
    for _ in range(20):
        await authenticator.principal("Bearer good")  # nobody waits for the answer
    control_plane.answering.set()
    await asyncio.wait_for(control_plane.answered.wait(), 10)
    clock.advance(2)
    await authenticator.principal("Bearer good")
    assert control_plane.asked == 2


async def test_a_revoked_key_ends_with_its_freshness(
    authenticator: Authenticator, control_plane: _ControlPlane, clock: MovableClock
) -> None:
    await authenticator.principal("Bearer good")
    control_plane.keys.clear()
    clock.advance(FRESH_SECONDS)
    assert await _refusal(authenticator, "Bearer good") == (401, "invalid_api_key")
    control_plane.up = False
    assert await _refusal(authenticator, "Bearer good") == (503, "control_plane_unavailable")


async def test_a_known_key_survives_an_outage_but_not_for_ever(
    authenticator: Authenticator, control_plane: _ControlPlane, clock: MovableClock
) -> None:
    await authenticator.principal("Bearer good")
    control_plane.up = False
    clock.advance(OUTAGE_SECONDS - 1)
    assert (await authenticator.principal("Bearer good")).project_id == "p1"
    clock.advance(1)
    assert await _refusal(authenticator, "Bearer good") == (503, "control_plane_unavailable")
    assert await _refusal(authenticator, "Bearer other") == (503, "control_plane_unavailable")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer  ", "Basic good", "good", "Bearer bad", "Bearer \udcff"]
)
async def test_anything_else_is_nobody(authenticator: Authenticator, header: str | None) -> None:
    assert await _refusal(authenticator, header) == (401, "invalid_api_key")


async def _refusal(authenticator: Authenticator, header: str | None) -> tuple[int, str]:
    with pytest.raises(GatewayError) as caught:
        await authenticator.principal(header)
    assert "good" not in caught.value.message
    return caught.value.status, caught.value.code
