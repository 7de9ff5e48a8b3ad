"""Owns the tasks beside the servers: leadership, scheduling and reconciling, from start to stop.

It must not know what they do in a pass. Stopping them leaves every run alive.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError

from tunesmith_server.core import Core
from tunesmith_server.executors.base import Executor
from tunesmith_server.repeat import repeat
from tunesmith_server.scheduling.leases import Leadership
from tunesmith_server.scheduling.reconciler import Reconciler
from tunesmith_server.scheduling.scheduler import Scheduler

_SCHEDULE_SECONDS = 1.0
_RECONCILE_SECONDS = 1.0
_REST_SECONDS = 0.05

_log = logging.getLogger(__name__)


class Scheduling:
    """The scheduler of this process. Acts only while it is the leader."""

    def __init__(self, core: Core, executor: Executor) -> None:
        ttl = core.settings.leader_ttl_seconds
        self._renewal_seconds = ttl / 3
        self._leadership = Leadership(core.database, core.clock, "scheduler", ttl)
        self._scheduler = Scheduler(core, executor, self._leadership.held, self._leadership.confirm)
        self._reconciler = Reconciler(core, executor, self._leadership.held, self.wake)
        self._woken = (asyncio.Event(), asyncio.Event())
        self._tasks: list[asyncio.Task[None]] = []

    def wake(self) -> None:
        """There is something new: look at once instead of at the next turn."""
        for event in self._woken:
            event.set()

    def leads(self) -> bool:
        """Whether this process does what one of several should do."""
        return self._leadership.held()

    async def start(self) -> None:
        """Starts the tasks; call it once, in the running event loop."""
        for_scheduler, for_reconciler = self._woken
        self._tasks = [
            asyncio.create_task(repeat(self._lead, self._renewal_seconds, asyncio.Event())),
            asyncio.create_task(repeat(self._schedule, _SCHEDULE_SECONDS, for_scheduler)),
            asyncio.create_task(repeat(self._reconcile, _RECONCILE_SECONDS, for_reconciler)),
        ]

    async def stop(self) -> None:
        """Ends the tasks and the leadership; runs live on and are found again by the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reconciler.close()
        try:
            await self._leadership.release()
        except (SQLAlchemyError, OSError) as error:
            _log.warning("the leadership could not be given up; it will run out", exc_info=error)

    async def _lead(self) -> None:
        led_before = self._leadership.held()
        if await self._leadership.renew() and not led_before:
            _log.info("this process schedules now")
            self.wake()

    async def _schedule(self) -> None:
        if self._leadership.held():
            await _with_rest(self._scheduler.run_once)

    async def _reconcile(self) -> None:
        if self._leadership.held():
            await _with_rest(self._reconciler.run_once)


async def _with_rest(step: Callable[[], Awaitable[None]]) -> None:
    """A pass, and then as long a rest: hundreds of calls may wake it each second, and one pass answers them all."""
    clock = asyncio.get_running_loop().time
    began = clock()
    await step()
    await asyncio.sleep(max(_REST_SECONDS, clock() - began))
