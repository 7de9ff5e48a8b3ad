"""Two buckets per key: requests are taken before an answer, tokens after it."""

from __future__ import annotations

import pytest

from tests.support.clock import MovableClock
from tunesmith_inference.auth import Principal
from tunesmith_inference.errors import GatewayError
from tunesmith_inference.rate_limits import RateLimiter


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def limiter(clock: MovableClock) -> RateLimiter:
    return RateLimiter(clock)


def refusal(limiter: RateLimiter, principal: Principal) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        limiter.admit(principal)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return caught.value


def test_without_limits_nothing_is_said(limiter: RateLimiter) -> None:
    assert limiter.admit(Principal("p", "k")) == {}
    limiter.spend(Principal("p", "k"), 10**9)
    assert limiter.admit(Principal("p", "k")) == {}


def test_requests_run_out_and_come_back(limiter: RateLimiter, clock: MovableClock) -> None:
    principal = Principal("p", "k", requests_per_minute=2)
    assert limiter.admit(principal) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
    }
    limiter.admit(principal)
    refused = refusal(limiter, principal)
    assert refused.retry_after == 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"] == "1m0s"
    limiter.admit(Principal("p", "another", requests_per_minute=2))
    clock.advance(30)
    limiter.admit(principal)


def test_an_answer_may_overdraw_tokens_and_later_requests_wait_for_it(
    limiter: RateLimiter, clock: MovableClock
) -> None:
    principal = Principal("p", "k", tokens_per_minute=60)
    assert limiter.admit(principal)["x-ratelimit-remaining-tokens"] == "60"
    limiter.spend(principal, 89)
    assert refusal(limiter, principal).retry_after == 30
    clock.advance(30)
    assert limiter.admit(principal)["x-ratelimit-remaining-tokens"] == "1"


def test_a_refusal_for_tokens_takes_no_request(limiter: RateLimiter) -> None:
    principal = Principal("p", "k", requests_per_minute=2, tokens_per_minute=10)
    limiter.spend(principal, 10)
    for _ in range(3):
        assert refusal(limiter, principal).headers["x-ratelimit-remaining-requests"] == "2"
