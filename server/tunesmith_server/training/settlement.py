"""Owns the one write after the end of a run that did not complete: cancelled, failed, paused or waiting once more.

It must not know who noticed the end: the run itself, or the reconciler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.fine_tunes import events, repository
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.training import accounting
from tunesmith_server.training.limits import Limit, Spent
from tunesmith_server.training.outcomes import (
    Cause,
    Ending,
    GiveUp,
    Rest,
    Retry,
    decide,
    decide_pausing,
    decide_preempted,
)
from tunesmith_server.training.repository import has_checkpoint_of

_LEASED = frozenset({State.VALIDATING_FILES, State.RUNNING, State.PAUSING})


async def settle(
    session: AsyncSession, job: FineTuneRow, lease: str, endings: Sequence[Ending], now: int
) -> State | None:
    """Takes the job from the attempt `lease` whose run ended so; the first ending decides, all become events.

    Returns the job's new state; None when the attempt does not own the job (any more), then nothing changes.
    """
    while True:
        seen = (job.state, job.cancel_requested)
        state = await _settle_as_seen(session, job, lease, endings, now)
        if state is not None:
            return state
        # Its user may have paused or cancelled it in this very moment: then that decides what the ending means.
        now_stored = await repository.get(session, job.id)
        if now_stored is None or now_stored.lease_token != lease:
            return None
        job = now_stored
        if (job.state, job.cancel_requested) == seen:
            return None


async def finish_cancelled(session: AsyncSession, job: FineTuneRow, lease: str, now: int) -> State | None:
    """Ends a job whose cancellation was asked for while the attempt `lease` owned it; None: it does not own it."""
    return await _end(session, job, lease, State.CANCELLED, now, [events.cancelled_run_ended()], {})


async def _settle_as_seen(
    session: AsyncSession, job: FineTuneRow, lease: str, endings: Sequence[Ending], now: int
) -> State | None:
    if job.cancel_requested:
        return await finish_cancelled(session, job, lease, now)
    verdict = await _decide(session, job, endings[0])
    if isinstance(verdict, GiveUp):
        return await _fail(session, job, lease, verdict, endings, now)
    if isinstance(verdict, Rest):
        return await _end(session, job, lease, State.PAUSED, now, [events.run_paused()], {"retries": verdict.retries})
    return await _queue_again(session, job, lease, verdict, endings[0], now)


async def _decide(session: AsyncSession, job: FineTuneRow, ending: Ending) -> Retry | Rest | GiveUp:
    if job.state == State.VALIDATING_FILES and ending.cause is Cause.OUT_OF_MEMORY:
        return GiveUp(ending.code, ending.message)  # a preflight has no way that needs less
    if job.state == State.PAUSING:
        return decide_pausing(ending, job.retries)
    if job.preempt_requested:
        return decide_preempted(ending, job.retries)
    lost = ending.cause is Cause.INFRASTRUCTURE
    return decide(ending, job.retries, made_progress=lost and await has_checkpoint_of(session, job.id, job.epoch))


async def _fail(
    session: AsyncSession, job: FineTuneRow, lease: str, verdict: GiveUp, endings: Sequence[Ending], now: int
) -> State | None:
    param = endings[0].param
    lines = [events.failure(each.code, each.message, each.param, each.row) for each in endings]
    if verdict.code != endings[0].code:
        lines.append(events.failure(verdict.code, verdict.message, param))
    changes = {
        "error_code": verdict.code,
        "error_message": verdict.message,
        "error_param": param,
        "finished_at": now,
    }
    return await _end(session, job, lease, State.FAILED, now, lines, changes)


async def _queue_again(
    session: AsyncSession, job: FineTuneRow, lease: str, verdict: Retry, ending: Ending, now: int
) -> State | None:
    to = State.VALIDATING_FILES if job.state == State.VALIDATING_FILES else State.QUEUED
    changes = {"retries": verdict.retries, "not_before": now + verdict.delay_seconds}
    line = events.made_room() if job.preempt_requested else events.retrying(ending.message, verdict.delay_seconds)
    live = await accounting.spent_by(session, lease, now)
    state = await _end(session, job, lease, to, now, [line], changes, live)
    limit = accounting.limit_reached(job, live)
    if state is State.QUEUED and limit is not None:
        # Reached while nobody could look: the job must not get another period that its user has not granted.
        return await _rest(session, job, limit, now)
    return state


async def _rest(session: AsyncSession, job: FineTuneRow, limit: Limit, now: int) -> State:
    line = events.limit_reached(limit.name, limit.seconds, limit.used_seconds)
    await repository.transition(
        session, job.id, {State.QUEUED}, State.PAUSED, lease=None, now=now, events=[line, events.run_paused()]
    )
    return State.PAUSED


async def _end(
    session: AsyncSession,
    job: FineTuneRow,
    lease: str,
    to: State,
    now: int,
    lines: list[events.NewEvent],
    changes: Mapping[str, object],
    live: Spent | None = None,
) -> State | None:
    live = live or await accounting.spent_by(session, lease, now)
    released = {
        "lease_token": None,
        "lease_expires_at": None,
        "progress": None,
        "preempt_requested": False,
        **accounting.charged(job, live),
        **changes,
    }
    moved = await repository.transition(
        session, job.id, {State(job.state)} & _LEASED, to, lease=lease, now=now, events=lines, changes=released
    )
    if not moved:
        return None
    await accounting.record(session, job, live, now)
    return to
