"""Owns which waiting jobs may start now: first come, first served, within a number of runs. Pure.

It must not know the database or executors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

PREFLIGHTS = 1
"""A preflight takes little and is what users wait for first, so one may run beside a full house of training runs."""


class RunKind(StrEnum):
    """What an attempt does."""

    PREFLIGHT = "preflight"
    TRAINING = "training"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that could start."""

    job_id: str
    kind: RunKind


def pick(waiting: Sequence[Waiting], live: Iterable[RunKind], max_concurrent_runs: int) -> list[Waiting]:
    """Those of `waiting` (oldest first) that may start beside the runs in `live`."""
    running = list(live)
    free = {
        RunKind.PREFLIGHT: PREFLIGHTS - running.count(RunKind.PREFLIGHT),
        RunKind.TRAINING: max_concurrent_runs - running.count(RunKind.TRAINING),
    }
    picked = []
    for job in waiting:
        if free[job.kind] > 0:
            free[job.kind] -= 1
            picked.append(job)
    return picked
