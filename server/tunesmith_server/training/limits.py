"""Owns the limits that a user sets on a job's time and device time: what is used, and when it is used up. Pure.

It must not know how a job is paused. A job that is resumed after a limit gets as much once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of running, and the same times devices."""

    run_seconds: float
    device_seconds: float


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit that is used up."""

    name: str
    seconds: int
    """One period of it, as the user set it."""
    used_seconds: float


def used_up(before: Spent, live: Spent, max_run_seconds: int | None, max_device_seconds: int | None) -> Limit | None:
    """The first limit that a job has reached; `before` is what its ended attempts took, `live` the present one.

    What was used before the present attempt began was granted: it began because the user resumed the job.
    """
    for name, limit, earlier, now in _limits(before, live, max_run_seconds, max_device_seconds):
        granted_periods = earlier // limit + 1
        if earlier + now >= granted_periods * limit:
            return Limit(name, limit, earlier + now)
    return None


def _limits(
    before: Spent, live: Spent, max_run_seconds: int | None, max_device_seconds: int | None
) -> Iterator[tuple[str, int, float, float]]:
    if max_run_seconds:
        yield "max_run_seconds", max_run_seconds, before.run_seconds, live.run_seconds
    if max_device_seconds:
        yield "max_device_seconds", max_device_seconds, before.device_seconds, live.device_seconds
