"""Owns the agreement of the job store with what really runs: re-adopts, launches again, settles, stops and cleans up.

It must not know how to judge (verdicts.py) or what an ending means for a job (training/settlement.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.core import Core
from tunesmith_server.db.session import DATABASE_FAILURES
from tunesmith_server.executors.base import Executor, Observation, RunState
from tunesmith_server.failpoints import reach
from tunesmith_server.fine_tunes import events
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.scheduling import repository
from tunesmith_server.scheduling.repository import LiveAttempt
from tunesmith_server.scheduling.scheduler import launch
from tunesmith_server.scheduling.verdicts import EndAttempt, Facts, LaunchAgain, StopRun, Wait, judge
from tunesmith_server.tail import MAX_TAIL_BYTES
from tunesmith_server.telemetry import log_fields
from tunesmith_server.training import accounting
from tunesmith_server.training.settlement import settle

_STOP_GRACE_SECONDS = 10.0

_log = logging.getLogger(__name__)
_ENDED = Counter("tunesmith_attempts_ended_total", "Attempts whose run is over, by what ended it.", ["kind", "cause"])


class Reconciler:
    """One pass at a time. `may_act` is asked before each step; `wake` tells the scheduler of room or work."""

    def __init__(self, core: Core, executor: Executor, may_act: Callable[[], bool], wake: Callable[[], None]) -> None:
        self._core = core
        self._executor = executor
        self._may_act = may_act
        self._wake = wake
        # Leases run out while no control plane is there to renew them; silence counts from this process on.
        self._listening_since = core.clock()
        self._asked_to_end_since: dict[str, float] = {}
        self._silence_told: set[str] = set()
        self._background: dict[str, asyncio.Task[None]] = {}

    async def run_once(self) -> None:
        """Looks at every live attempt and at every run that the executor knows."""
        # Listed first: an attempt's row is there before its run, so what is missing in the rows read later is stray.
        known = await self._executor.list_attempts()
        async with self._core.database.read() as session:
            live = await repository.list_live(session)
        for each in live:
            if not self._may_act():
                return
            with log_fields(job_id=each.job.id, attempt_id=each.attempt.id):
                await self._reconcile_alone(each)
        ids = {each.attempt.id for each in live}
        self._asked_to_end_since = {each: since for each, since in self._asked_to_end_since.items() if each in ids}
        self._silence_told &= ids
        for attempt_id in sorted(set(known) - ids):
            if self._may_act():
                self._in_background(attempt_id, self._remove(attempt_id))

    async def close(self) -> None:
        """Leaves stops under way to the next process; runs go on."""
        for task in self._background.values():
            task.cancel()
        await asyncio.gather(*self._background.values(), return_exceptions=True)

    async def _reconcile_alone(self, live: LiveAttempt) -> None:
        """The same, without harm to the attempts that come after it."""
        try:
            await self._reconcile(live)
        except DATABASE_FAILURES:
            raise  # the database is away for all of them
        except Exception:
            _log.exception("attempt %s cannot be reconciled now; the next pass tries again", live.attempt.id)

    async def _reconcile(self, live: LiveAttempt) -> None:
        attempt_id = live.attempt.id
        observation = await self._executor.observe(attempt_id)
        await self._note_reachability(live, observation)
        await self._note_start(live, observation)
        verdict = judge(self._facts(live, observation))
        if isinstance(verdict, LaunchAgain):
            identity = AttemptIdentity(job_id=live.job.id, attempt_id=attempt_id, epoch=live.attempt.epoch)
            await launch(self._core, self._executor, identity, tuple(live.attempt.device_ids))
        elif isinstance(verdict, StopRun):
            self._in_background(attempt_id, self._executor.stop(attempt_id, _STOP_GRACE_SECONDS))
        elif isinstance(verdict, EndAttempt):
            await self._end(live, verdict, observation)
        else:
            if observation.state is not RunState.PENDING:
                await self._pause_at_limit(live)
            await self._wait(live, verdict)

    def _facts(self, live: LiveAttempt, observation: Observation) -> Facts:
        now = self._core.clock()
        ttl = self._core.settings.lease_ttl_seconds
        asked_to_yield = live.job.preempt_requested or live.job.state == State.PAUSING
        asked_to_end = not live.owns_job or live.job.cancel_requested or asked_to_yield
        return Facts(
            now=now,
            observation=observation,
            owns_job=live.owns_job,
            cancel_requested=live.job.cancel_requested,
            asked_to_yield=asked_to_yield,
            heard_from=live.job.progress is not None,
            lease_expires_at=max(live.job.lease_expires_at or 0.0, self._listening_since + ttl),
            asked_to_end_since=self._asked_to_end_since.setdefault(live.attempt.id, now) if asked_to_end else now,
            unreachable_since=live.attempt.unreachable_since,
            unreachable_limit=self._core.settings.unreachable_limit_seconds,
        )

    async def _note_reachability(self, live: LiveAttempt, observation: Observation) -> None:
        unreachable = observation.state is RunState.UNREACHABLE
        if unreachable == (live.attempt.unreachable_since is not None):
            return
        since = self._core.clock() if unreachable else None
        async with self._core.database.write() as session:
            await repository.set_unreachable_since(session, live.attempt.id, since)

    async def _note_start(self, live: LiveAttempt, observation: Observation) -> None:
        if observation.state is not RunState.RUNNING or live.attempt.started_at is not None:
            return
        async with self._core.database.write() as session:
            await accounting.begin(session, live.attempt.id, self._now())

    async def _wait(self, live: LiveAttempt, verdict: Wait) -> None:
        if verdict.silent_seconds <= 0 or live.attempt.id in self._silence_told:
            return
        self._silence_told.add(live.attempt.id)
        line = events.silent(self._core.settings.lease_ttl_seconds)
        async with self._core.database.write() as session:
            await jobs.amend(session, live.job.id, lease=live.attempt.id, now=self._now(), events=[line])

    async def _pause_at_limit(self, live: LiveAttempt) -> None:
        limit = accounting.limit_reached(live.job, accounting.spent_live(live.attempt, self._core.clock()))
        if limit is None or not live.owns_job or live.job.state != State.RUNNING:
            return
        line = events.limit_reached(limit.name, limit.seconds, limit.used_seconds)
        async with self._core.database.write() as session:
            await jobs.transition(
                session,
                live.job.id,
                {State.RUNNING},
                State.PAUSING,
                lease=live.attempt.id,
                now=self._now(),
                events=[line],
            )

    async def _end(self, live: LiveAttempt, verdict: EndAttempt, observation: Observation) -> None:
        attempt_id = live.attempt.id
        await self._keep_log(attempt_id)
        reach("ending.log_kept")
        now = self._now()
        async with self._core.database.write() as session:
            if verdict.ending is not None:
                job = await jobs.get(session, live.job.id)
                # The run's own last call may have settled the job after it was read; then this changes nothing.
                if job is not None:
                    await settle(session, job, attempt_id, [verdict.ending], now)
            await repository.end_attempt(
                session, attempt_id, cause=verdict.cause, exit_code=observation.exit_code, now=now
            )
            reach("ending.writing")
        reach("ending.written")
        _ENDED.labels(live.attempt.kind, verdict.ending.cause.value if verdict.ending else verdict.cause).inc()
        self._in_background(attempt_id, self._remove(attempt_id))
        self._wake()

    async def _remove(self, attempt_id: str) -> None:
        await self._executor.stop(attempt_id, _STOP_GRACE_SECONDS)
        await self._executor.forget(attempt_id)

    async def _keep_log(self, attempt_id: str) -> None:
        text = await self._executor.read_log(attempt_id, MAX_TAIL_BYTES)
        if not text:
            return
        path = self._core.settings.home / "logs" / f"{attempt_id}.log"
        try:
            await asyncio.to_thread(_write_private, path, text)
        except OSError:
            # The end of a run is worth more than its last words.
            _log.exception("the log of attempt %s cannot be kept; make room for %s", attempt_id, path)

    def _in_background(self, attempt_id: str, work: Coroutine[Any, Any, None]) -> None:
        """One piece of slow work per attempt; a failed one is started again by the next pass."""
        if attempt_id in self._background:
            work.close()
            return
        task = asyncio.create_task(work)
        self._background[attempt_id] = task
        task.add_done_callback(lambda done: self._finished(attempt_id, done))

    def _finished(self, attempt_id: str, task: asyncio.Task[None]) -> None:
        self._background.pop(attempt_id, None)
        if not task.cancelled() and task.exception() is not None:
            _log.error("attempt %s cannot be stopped or removed now", attempt_id, exc_info=task.exception())
        self._wake()

    def _now(self) -> int:
        return int(self._core.clock())


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
