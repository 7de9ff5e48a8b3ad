"""A bucket per key that fills again all the time, and how clients are told of it."""

from __future__ import annotations

import httpx
import pytest

from tests.support.administration import Installation
from tests.support.clock import MovableClock
from tunesmith_server.projects.administration import Administration
from tunesmith_server.projects.rate_limits import Allowance, RateLimiter, duration


def test_a_bucket_empties_and_fills() -> None:
    clock = MovableClock()
    limiter = RateLimiter(clock)
    assert limiter.take("a", 3) == (Allowance(3, 2, 20.0), 0.0)
    limiter.take("a", 3)
    limiter.take("a", 3)
    left, wait = limiter.take("a", 3)
    assert (left.remaining, left.reset_seconds, wait) == (0, 60.0, 20.0)
    assert limiter.take("b", 3)[1] == 0, "keys have buckets of their own"
    clock.advance(20)
    assert limiter.take("a", 3)[1] == 0
    clock.advance(3600)
    assert limiter.take("a", 3)[0].remaining == 2, "a bucket never holds more than its limit"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0101, "11ms"), (1, "1s"), (59.2, "1m0s"), (60, "1m0s"), (361, "6m1s")]
)
def test_durations_look_as_clients_expect(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_headers_come_with_a_limit_only(installation: Installation) -> None:
    async with await installation.http() as client:
        assert not [name for name in (await client.get("/v1/files")).headers if name.startswith("x-ratelimit")]
        await limit(installation, 2)
        answer = await client.get("/v1/files/unknown")
        assert answer.status_code == 404
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == "1"
        assert answer.headers["x-ratelimit-reset-requests"] == "30s"
        await client.get("/v1/files")
        refused = await client.get("/v1/files")
        assert_refused(refused)


def assert_refused(refused: httpx.Response) -> None:
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 0 < int(refused.headers["retry-after"]) <= 30
    assert 0 < int(refused.headers["retry-after-ms"]) <= 30_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in refused.headers, "waiting helps"


async def limit(installation: Installation, requests_per_minute: int) -> None:
    quotas = {"requests_per_minute": requests_per_minute}
    await Administration(installation.core, installation.part.keys.lookup).update("default", quotas=quotas)
