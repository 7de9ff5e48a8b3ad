"""Owns when waiting jobs can be expected to start, if every run takes as long as is known of it. Pure.

It must not know the database. It fills no gaps and pre-empts nothing, so a job may start earlier than said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf

from tunesmith_server.scheduling.capacity import Running, Waiting, free_devices


def expected_start(
    job: Waiting, running: Sequence[Running], ahead: Iterable[Waiting], inventory: Sequence[str]
) -> float | None:
    """Seconds until `job` starts; None when that depends on something that nobody knows.

    `ahead` are the jobs that start before it, in their order.
    """
    *_, last = expected_starts([*ahead, job], running, inventory)
    return last


def expected_starts(
    order: Iterable[Waiting], running: Sequence[Running], inventory: Sequence[str]
) -> Iterator[float | None]:
    """The same for every job of a queue that starts in this order."""
    free_in = [0.0] * len(free_devices(inventory, running))
    free_in += [_unless_unknown(run.remaining_seconds) for run in running for _ in run.devices]
    starts_in = 0.0
    for job in order:
        if job.devices > len(free_in):
            yield None  # the scheduler fails it and holds nobody up for it
            continue
        free_in.sort()
        # Nobody is overtaken: the next one starts no earlier than the one before.
        starts_in = max(starts_in, free_in[job.devices - 1])
        free_in[: job.devices] = [starts_in + _unless_unknown(job.expected_seconds)] * job.devices
        yield starts_in if starts_in < inf else None


def _unless_unknown(seconds: float | None) -> float:
    return inf if seconds is None else seconds
