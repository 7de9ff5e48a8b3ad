"""Owns how many calls a key may make in a minute: a bucket per key that fills again all the time.

It must not know what is called. Buckets live in this process: several servers allow several times as much.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith_server.errors import QuotaExceededError

_MAX_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What a key may use per minute; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Enforced by the gateways."""


UNLIMITED = RateLimits()


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a limit after a call."""

    limit: int
    remaining: int
    reset_seconds: float
    """Until the whole limit is there again."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers that OpenAI's clients read."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": duration(self.reset_seconds),
        }


class RateLimiter:
    """The buckets of every key that was seen lately. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key_id: str, limit: int) -> tuple[Allowance, float]:
        """Takes one call from the key's bucket; returns what is left and the seconds to wait, 0 when it was taken."""
        now = self._clock()
        level, at = self._buckets.pop(key_id, (float(limit), now))
        level = min(level + (now - at) * limit / 60, limit)
        wait = max(0.0, (1 - level) * 60 / limit)
        level -= 0 if wait else 1
        self._buckets[key_id] = (level, now)
        if len(self._buckets) > _MAX_KEYS:
            self._buckets.popitem(last=False)
        return Allowance(limit, max(0, math.floor(level)), (limit - level) * 60 / limit), wait


def refusal(limit: int, wait_seconds: float) -> QuotaExceededError:
    """What a caller is told whose bucket is empty."""
    message = f"This key may make {limit} requests per minute. Send fewer, or ask the operator for more."
    return QuotaExceededError("rate_limit_exceeded", message, retry_after=wait_seconds)


def duration(seconds: float) -> str:
    """`120ms`, `1s`, `6m0s`, rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
