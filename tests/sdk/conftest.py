"""Owns what the SDK's tests start from: a real server, clients that talk to it, and pauses that pass at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.support.fake_api import API_KEY, FakeApi, running_fake_api
from tunesmith import AsyncTunesmith, Tunesmith
from tunesmith._http import AsyncTransport, BlockingTransport


class Pauses:
    """The lengths in seconds of all pauses that a client made; `on_pause` hears the number of each, from 1."""

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self.on_pause: Callable[[int], object] = lambda number: None


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with running_fake_api() as running:
        yield running


@pytest.fixture
def client(api: FakeApi) -> Iterator[Tunesmith]:
    with Tunesmith(base_url=api.url, api_key=API_KEY) as connected:
        yield connected


@pytest.fixture
async def async_client(api: FakeApi) -> AsyncIterator[AsyncTunesmith]:
    async with AsyncTunesmith(base_url=api.url, api_key=API_KEY) as connected:
        yield connected


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    recorded = Pauses()

    async def pass_at_once(self: object, seconds: float) -> None:
        recorded.lengths.append(seconds)
        recorded.on_pause(len(recorded.lengths))

    monkeypatch.setattr(BlockingTransport, "sleep", pass_at_once)
    monkeypatch.setattr(AsyncTransport, "sleep", pass_at_once)
    return recorded


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNESMITH_API_KEY", "TUNESMITH_BASE_URL", "TUNESMITH_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
