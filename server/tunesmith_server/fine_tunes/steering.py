"""Owns what cancel, pause and resume write, by the state that a job is in.

It must not know transports. Each function is one try: False when the job changed hands meanwhile, then look again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.fine_tunes import events, repository, views
from tunesmith_server.fine_tunes.state import TERMINAL, State


async def cancel(session: AsyncSession, job: FineTuneRow, now: int) -> bool:
    """Gives the job up; raises InvalidRequestError (`job_not_cancellable`) when it has ended.

    Not with 409, which OpenAI's clients would repeat in vain.
    """
    if _has_ended(job):
        message = f"The job {job.id} is {views.status(job)}. Only jobs under way can be cancelled."
        raise InvalidRequestError("job_not_cancellable", message)
    if job.lease_token is None:
        changes = {"finished_at": now}
        return await _move(session, job, State.CANCELLED, events.cancelled(), now, changes)
    # A run owns the job: it is told by its next heartbeat, and the reconciler sees to its end.
    standing = await repository.amend(
        session,
        job.id,
        lease=job.lease_token,
        now=now,
        events=[events.cancelled()],
        changes={"cancel_requested": True, "finished_at": now},
    )
    return standing is not None


async def pause(session: AsyncSession, job: FineTuneRow, now: int) -> bool:
    """Has the job wait for `resume`; nothing changes when it does already.

    Raises InvalidRequestError (`job_not_pausable`) when it has ended.
    """
    if _has_ended(job):
        message = f"The job {job.id} is {views.status(job)}. Only jobs under way can be paused."
        raise InvalidRequestError("job_not_pausable", message)
    if job.state == State.QUEUED:
        return await _move(session, job, State.PAUSED, events.paused(), now)
    if job.state == State.RUNNING:
        # The run is told by its next heartbeat, saves a checkpoint and ends; then the job is paused.
        return await _move(session, job, State.PAUSING, events.pausing(), now)
    if job.state == State.VALIDATING_FILES and job.auto_start:
        return await _set_auto_start(session, job, False, events.pausing_after_validation(), now)
    return True


async def resume(session: AsyncSession, job: FineTuneRow, now: int) -> bool:
    """Puts a paused job into the queue again, or has one that is validated start by itself.

    Raises InvalidRequestError (`job_not_resumable`) in any other state. A limit that the job has used up is granted
    once more (training/limits.py).
    """
    if _has_ended(job) or job.state in (State.QUEUED, State.RUNNING) or _starts_by_itself(job):
        message = f"The job {job.id} is {views.status(job)}. Only paused jobs can be resumed."
        raise InvalidRequestError("job_not_resumable", message)
    if job.state == State.PAUSING:
        message = f"The job {job.id} is still pausing while its run saves its work. Wait until it is paused."
        raise InvalidRequestError("job_not_resumable", message)
    if job.state == State.VALIDATING_FILES:
        return await _set_auto_start(session, job, True, events.starting_after_validation(), now)
    return await _move(
        session, job, State.QUEUED, events.resumed(), now, {"auto_start": True, "not_before": float(now)}
    )


def _has_ended(job: FineTuneRow) -> bool:
    return job.cancel_requested or job.state in TERMINAL


def _starts_by_itself(job: FineTuneRow) -> bool:
    return job.state == State.VALIDATING_FILES and job.auto_start


async def _move(
    session: AsyncSession,
    job: FineTuneRow,
    to: State,
    event: events.NewEvent,
    now: int,
    changes: dict[str, Any] | None = None,
) -> bool:
    return await repository.transition(
        session, job.id, {State(job.state)}, to, lease=job.lease_token, now=now, events=[event], changes=changes
    )


async def _set_auto_start(
    session: AsyncSession, job: FineTuneRow, auto_start: bool, event: events.NewEvent, now: int
) -> bool:
    # Guarded by the state too: a preflight that ends meanwhile has decided by the old value.
    standing = await repository.amend(
        session,
        job.id,
        lease=job.lease_token,
        now=now,
        events=[event],
        changes={"auto_start": auto_start},
        expected={State.VALIDATING_FILES},
    )
    return standing is not None
