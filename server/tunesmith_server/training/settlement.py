"""Owns the one write after the end of a run that did not complete: cancelled, failed, or waiting for another try.

It must not know who noticed the end: the run itself, or the reconciler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.fine_tunes import events, repository
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.training.outcomes import Ending, GiveUp, decide

_LEASED = frozenset({State.VALIDATING_FILES, State.RUNNING, State.PAUSING})


async def settle(
    session: AsyncSession, job: FineTuneRow, lease: str, endings: Sequence[Ending], now: int
) -> State | None:
    """Takes the job from the attempt `lease` whose run ended so; the first ending decides, all become events.

    Returns the job's new state; None when the attempt does not own the job (any more), then nothing changes.
    """
    if job.cancel_requested:
        return await finish_cancelled(session, job, lease, now)
    ending = endings[0]
    verdict = decide(ending, job.retries)
    changes: Mapping[str, object]
    lines = [events.failure(each.code, each.message, each.param, each.row) for each in endings]
    if isinstance(verdict, GiveUp):
        to = State.FAILED
        if verdict.code != ending.code:
            lines.append(events.failure(verdict.code, verdict.message, ending.param))
        changes = {
            "error_code": verdict.code,
            "error_message": verdict.message,
            "error_param": ending.param,
            "finished_at": now,
        }
    else:
        to = State.VALIDATING_FILES if job.state == State.VALIDATING_FILES else State.QUEUED
        lines = [events.retrying(ending.message, verdict.delay_seconds)]
        changes = {"retries": verdict.retries, "not_before": now + verdict.delay_seconds}
    return await _end(session, job, lease, to, now, lines, changes)


async def finish_cancelled(session: AsyncSession, job: FineTuneRow, lease: str, now: int) -> State | None:
    """Ends a job whose cancellation was asked for while the attempt `lease` owned it; None: it does not own it."""
    return await _end(session, job, lease, State.CANCELLED, now, [events.cancelled_run_ended()], {})


async def _end(
    session: AsyncSession,
    job: FineTuneRow,
    lease: str,
    to: State,
    now: int,
    lines: list[events.NewEvent],
    changes: Mapping[str, object],
) -> State | None:
    released = {"lease_token": None, "lease_expires_at": None, "progress": None, **changes}
    moved = await repository.transition(
        session, job.id, {State(job.state)} & _LEASED, to, lease=lease, now=now, events=lines, changes=released
    )
    return to if moved else None
