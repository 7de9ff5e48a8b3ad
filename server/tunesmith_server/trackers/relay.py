"""Owns the task that tells trackers of jobs: which are due, what is new of each, when to try again, when to stop.

It must not know the trackers' clients. The steps are in the database and every tracker says which one it has last, so
a relay that dies is continued by the next one without a gap, and a tracker that is away is told later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import Counter

from tunesmith_server.core import Core
from tunesmith_server.db.tables import FineTuneRow, StepMetricRow, TrackedRunRow
from tunesmith_server.failpoints import reach
from tunesmith_server.fine_tunes import events
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.events import NewEvent
from tunesmith_server.fine_tunes.state import TERMINAL
from tunesmith_server.repeat import rest
from tunesmith_server.trackers import content, courier, repository
from tunesmith_server.trackers.courier import Courier, CourierError
from tunesmith_server.trackers.installation import LABELS

_MAX_FOLLOWED = 16
"""Processes at once; a job beyond them is told of when one of them ends."""
_STEPS_PER_CALL = 100
_POLL_SECONDS = 5.0
_OPEN_SECONDS = 120.0
_LOG_SECONDS = 60.0
_CLOSE_SECONDS = 300.0
_FIRST_PAUSE_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 3600.0
_GIVE_UP_SECONDS = 2 * 86400
"""After the end of a job; until then a tracker that is away is tried again."""

_log = logging.getLogger(__name__)
_FAILURES = Counter("tunesmith_tracker_failures_total", "Times that an experiment tracker failed.", ["tracker"])


class TrackerRelay:
    """Follows jobs that name a tracker while this process leads."""

    def __init__(self, core: Core, leads: Callable[[], bool]) -> None:
        self._core = core
        self._leads = leads
        self._folder = core.settings.home.absolute() / "trackers"
        self._followed: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def run_once(self) -> None:
        """Starts to follow what is due; returns without waiting for any tracker."""
        if not self._leads():
            await self.stop()
            return
        async with self._core.database.read() as session:
            due = await repository.due_runs(session, self._core.clock(), 2 * _MAX_FOLLOWED)
        for run in due:
            key = (run.job_id, run.tracker)
            if key not in self._followed and len(self._followed) < _MAX_FOLLOWED:
                task = asyncio.create_task(self._follow(run))
                self._followed[key] = task
                task.add_done_callback(partial(self._ended, key))

    async def idle(self) -> None:
        """Returns once nothing that was started goes on; jobs that run are followed to their end."""
        await asyncio.gather(*self._followed.values(), return_exceptions=True)

    async def stop(self) -> None:
        """Ends what is under way; the next pass, here or elsewhere, goes on from what trackers have."""
        for task in self._followed.values():
            task.cancel()
        await self.idle()

    async def _follow(self, run: TrackedRunRow) -> None:
        try:
            await self._tell(run)
        except (CourierError, OSError) as error:
            _FAILURES.labels(run.tracker).inc()
            fields = {"job_id": run.job_id, "tracker": run.tracker, "error": str(error)}
            _log.warning("a tracker could not be told of a job", extra={"fields": fields})
            await self._put_off(run)

    async def _tell(self, run: TrackedRunRow) -> None:
        job, steps = await self._news(run, 0)
        if run.opened_at is None and job.state in TERMINAL and not steps:
            await self._forget(run)  # it never trained
            return
        async with courier.started(self._folder / run.job_id) as carrier:
            opened = await carrier.ask("open", content.opening(job, run.tracker), _OPEN_SECONDS)
            await self._note_opened(run, opened)
            reach("tracker.opened")
            job, last_step = await self._tell_steps(run, carrier, opened["last_step"])
            await carrier.ask("close", content.ending(job, last_step), _CLOSE_SECONDS)
            reach("tracker.closed")
            await carrier.end()
        if job.state in TERMINAL:
            await self._forget(run)

    async def _tell_steps(self, run: TrackedRunRow, carrier: Courier, last_step: int) -> tuple[FineTuneRow, int]:
        """Hands steps over as they come, until the job has no run any more; returns it and its last step."""
        with self._core.database.news.about(run.job_id) as woken:
            while True:
                woken.clear()
                job, steps = await self._news(run, last_step)
                if steps:
                    await carrier.ask("log", [content.point(job, step) for step in steps], _LOG_SECONDS)
                    last_step = steps[-1].step
                    reach("tracker.told")
                elif job.state in repository.MOVING:
                    await rest(woken, _POLL_SECONDS)
                else:
                    return job, last_step

    async def _news(self, run: TrackedRunRow, last_step: int) -> tuple[FineTuneRow, list[StepMetricRow]]:
        """The job and its next steps. It is read first: its last steps are stored before its last state."""
        async with self._core.database.read() as session:
            job = await jobs.get(session, run.job_id)
            steps = await jobs.list_metrics(session, run.job_id, after=last_step, limit=_STEPS_PER_CALL)
        if job is None:
            raise ValueError(f"the job {run.job_id} is gone")
        return job, steps

    async def _note_opened(self, run: TrackedRunRow, opened: dict[str, Any]) -> None:
        line = None
        if run.opened_at is None:
            line = events.tracked(run.tracker, LABELS[run.tracker], opened["run_id"], opened["url"])
        run.failures, run.opened_at = 0, run.opened_at or int(self._core.clock())
        await self._write(run, line, failures=run.failures, opened_at=run.opened_at)

    async def _put_off(self, run: TrackedRunRow) -> None:
        now = self._core.clock()
        async with self._core.database.read() as session:
            job = await jobs.get(session, run.job_id)
        if job is not None and job.finished_at is not None and now > job.finished_at + _GIVE_UP_SECONDS:
            _log.error("a tracker is not told of a job any more", extra={"fields": {"job_id": run.job_id}})
            await self._forget(run)
            return
        line = None if run.complained_at else events.tracker_silent(run.tracker, LABELS[run.tracker])
        pause = min(_FIRST_PAUSE_SECONDS * 2**run.failures, _LONGEST_PAUSE_SECONDS)
        await self._write(
            run,
            line,
            failures=min(run.failures + 1, 16),
            not_before=now + pause,
            complained_at=run.complained_at or int(now),
        )

    async def _write(self, run: TrackedRunRow, line: NewEvent | None, **changes: Any) -> None:
        """Changes the row and, unless the job has ended, adds the line to its history."""
        done = False
        while not done:
            async with self._core.database.write() as session:
                job = await jobs.get(session, run.job_id)
                if line is None or job is None or job.state in TERMINAL:
                    done = True
                else:
                    # Whoever owns the job may change at this moment; then it is asked for anew.
                    now, lease = int(self._core.clock()), job.lease_token
                    done = await jobs.amend(session, job.id, lease=lease, now=now, events=[line]) is not None
                if done:
                    await repository.change_run(session, run, **changes)

    async def _forget(self, run: TrackedRunRow) -> None:
        async with self._core.database.write() as session:
            await repository.delete_run(session, run)

    def _ended(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        del self._followed[key]
        if not task.cancelled() and task.exception() is not None:
            _log.error("following a job for a tracker failed; it is taken up again", exc_info=task.exception())
