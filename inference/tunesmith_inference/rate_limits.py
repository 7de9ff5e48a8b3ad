"""Owns how much a key may ask of this gateway in a minute: two buckets per key that fill again all the time.

It must not know what is asked. Buckets live in this process: several gateways allow several times as much. What an
answer takes is known at its end: a request is let in while tokens are left, and one answer may overdraw them.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from tunesmith_inference.auth import Principal
from tunesmith_inference.errors import rate_limited

Kind = Literal["requests", "tokens"]

_MAX_BUCKETS = 20_000


class RateLimiter:
    """The buckets of every key that was seen lately. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, Kind], tuple[float, float]] = OrderedDict()

    def admit(self, principal: Principal) -> dict[str, str]:
        """Takes one request; returns the headers that tell what is left. Raises 429 with them when nothing is."""
        limits = _limits(principal)
        levels = {kind: self._level(principal.key_id, kind, limit) for kind, limit in limits.items()}
        # Both are looked at before anything is taken, so that a refusal costs nothing.
        waits = {kind: (1 - level) * 60 / limits[kind] for kind, level in levels.items() if level < 1}
        if not waits and "requests" in levels:
            levels["requests"] -= 1
            self._store(principal.key_id, "requests", levels["requests"])
        headers = {
            name: value for kind, limit in limits.items() for name, value in _headers(kind, limit, levels[kind]).items()
        }
        if waits:
            kind = max(waits, key=lambda one: waits[one])
            raise rate_limited(kind, limits[kind], waits[kind], headers)
        return headers

    def spend(self, principal: Principal, tokens: int) -> None:
        """Takes what an answer used."""
        limit = principal.tokens_per_minute
        if limit is not None:
            self._store(principal.key_id, "tokens", self._level(principal.key_id, "tokens", limit) - tokens)

    def _level(self, key_id: str, kind: Kind, limit: int) -> float:
        now = self._clock()
        level, at = self._buckets.get((key_id, kind), (float(limit), now))
        return min(level + (now - at) * limit / 60, limit)

    def _store(self, key_id: str, kind: Kind, level: float) -> None:
        self._buckets[key_id, kind] = (level, self._clock())
        self._buckets.move_to_end((key_id, kind))
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)


def _limits(principal: Principal) -> dict[Kind, int]:
    found: dict[Kind, int] = {}
    if principal.requests_per_minute is not None:
        found["requests"] = principal.requests_per_minute
    if principal.tokens_per_minute is not None:
        found["tokens"] = principal.tokens_per_minute
    return found


def _headers(kind: Kind, limit: int, level: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(max(0, math.floor(level))),
        f"x-ratelimit-reset-{kind}": _duration((limit - level) * 60 / limit),
    }


def _duration(seconds: float) -> str:
    """`120ms`, `1s`, `6m0s`, rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
