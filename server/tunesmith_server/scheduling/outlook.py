"""Owns what can be told of jobs that wait for devices: their place in the queue and when they may start.

It must not know who asks, and decides nothing: the scheduler does, from the same snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith_server.core import Core
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors.base import Executor
from tunesmith_server.scheduling import snapshot
from tunesmith_server.scheduling.capacity import Waiting, in_order
from tunesmith_server.scheduling.forecast import expected_starts

_PER_PROJECT = 1000
"""Jobs of each project that are counted; who stands behind so many is told no more than that."""
_SHORT_QUEUE = 50
"""An answer about no more jobs is read anew each time."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job stands."""

    position: int
    """1 for the job that starts next."""
    starts_in_seconds: float | None
    """None: nobody can tell."""


class Outlook:
    """Answers for the queue as it is now, or was a moment ago when it is long."""

    def __init__(self, core: Core, executor: Executor) -> None:
        self._core = core
        self._executor = executor
        self._kept: dict[str, Place] = {}
        self._kept_until = 0.0

    async def places(self, jobs: Sequence[FineTuneRow]) -> dict[str, Place]:
        """The places of these jobs by id. A job that does not wait gets the place that it would have if it did."""
        known = self._kept if time.perf_counter() < self._kept_until else {}
        if not all(job.id in known for job in jobs):
            started = time.perf_counter()
            known = await self._read({job.id: _waiting(job) for job in jobs})
            took = time.perf_counter() - started
            # Of a long queue everybody who polls shares an answer, so that at most a tenth of the time goes into it.
            self._kept, self._kept_until = known, started + (11 * took if len(known) > _SHORT_QUEUE else 0.0)
        return {job.id: known[job.id] for job in jobs}

    async def _read(self, asked: dict[str, Waiting]) -> dict[str, Place]:
        """The places of all that wait and of those asked for."""
        async with self._core.database.read() as session:
            queue = await snapshot.take(session, self._core.settings, self._core.clock(), _PER_PROJECT)
        waiting = {job.job_id: job for job in queue.waiting} | asked
        # Quotas hold jobs back, but say nothing of when: they are left out of the order.
        projects = {
            project_id: replace(project, max_running=None, device_seconds_left=None)
            for project_id, project in queue.projects.items()
        }
        order = list(in_order(waiting.values(), queue.running, projects))
        starts = expected_starts(order, queue.running, await self._inventory())
        return {
            job.job_id: Place(number, starts_in)
            for number, (job, starts_in) in enumerate(zip(order, starts, strict=True), 1)
        }

    async def _inventory(self) -> tuple[str, ...]:
        try:
            return (await self._executor.capabilities()).devices
        except UnavailableError:
            return ()


def _waiting(job: FineTuneRow) -> Waiting:
    return Waiting(
        job_id=job.id,
        project_id=job.project_id,
        priority=job.priority,
        position=job.position,
        devices=job.devices,
        expected_seconds=(job.report or {}).get("seconds"),
    )
