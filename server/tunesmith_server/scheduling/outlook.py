"""Owns what can be told of jobs that wait for devices: their place in the queue and when they may start.

It must not know who asks, and decides nothing: the scheduler does, from the same snapshot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tunesmith_server.core import Core
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors.base import Executor
from tunesmith_server.scheduling import snapshot
from tunesmith_server.scheduling.capacity import Project, Running, Waiting, in_order
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
        self._kept = _Queue()
        self._kept_until = 0.0
        self._turn = asyncio.Lock()

    async def places(self, jobs: Sequence[FineTuneRow]) -> dict[str, Place]:
        """The places of these jobs by id. A job that does not wait gets the place that it would have if it did."""
        queue = await self._queue()
        missing = [_waiting(job) for job in jobs if job.id not in queue.places]
        if missing:
            # Who is not counted, or came since, must not cost the others what is kept.
            found = queue.in_order(missing)
            queue.places.update({job.job_id: found[job.job_id] for job in missing})
        return {job.id: queue.places[job.id] for job in jobs}

    async def _queue(self) -> _Queue:
        """The queue; of a long one everybody who polls shares what was read."""
        asked = time.perf_counter()
        async with self._turn:
            # Who waited for somebody else's reading has use for what it found, if that began after they asked.
            if asked >= self._kept_until:
                started = time.perf_counter()
                self._kept = await self._read()
                self._kept.places.update(self._kept.in_order())
                took = time.perf_counter() - started
                # So that at most a tenth of the time goes into it.
                self._kept_until = started + (11 * took if len(self._kept.waiting) > _SHORT_QUEUE else 0.0)
            return self._kept

    async def _read(self) -> _Queue:
        async with self._core.database.read() as session:
            queue = await snapshot.take(session, self._core.settings, self._core.clock(), _PER_PROJECT)
        # Quotas hold jobs back, but say nothing of when: they are left out of the order.
        projects = {
            project_id: replace(project, max_running=None, device_seconds_left=None)
            for project_id, project in queue.projects.items()
        }
        return _Queue(queue.waiting, queue.running, projects, await self._inventory())

    async def _inventory(self) -> tuple[str, ...]:
        try:
            return (await self._executor.capabilities()).devices
        except UnavailableError:
            return ()


@dataclass(frozen=True, slots=True)
class _Queue:
    """The queue at one moment."""

    waiting: Sequence[Waiting] = ()
    running: Sequence[Running] = ()
    projects: Mapping[str, Project] = field(default_factory=dict)
    inventory: tuple[str, ...] = ()
    places: dict[str, Place] = field(default_factory=dict)
    """By job, of those that wait and of those that were asked for since."""

    def in_order(self, asked: Sequence[Waiting] = ()) -> dict[str, Place]:
        """The places of all that wait, if those asked for waited with them."""
        waiting = {job.job_id: job for job in (*self.waiting, *asked)}
        order = list(in_order(waiting.values(), self.running, self.projects))
        starts = expected_starts(order, self.running, self.inventory)
        return {
            job.job_id: Place(number, starts_in)
            for number, (job, starts_in) in enumerate(zip(order, starts, strict=True), 1)
        }


def _waiting(job: FineTuneRow) -> Waiting:
    return Waiting(
        job_id=job.id,
        project_id=job.project_id,
        priority=job.priority,
        position=job.position,
        devices=job.devices,
        expected_seconds=(job.report or {}).get("seconds"),
    )
