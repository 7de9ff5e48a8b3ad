"""Owns the write by which a job succeeds: its last state, its events and the name of its model in one transaction.

It must not know what the run made or how that was verified.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import FencedError
from tunesmith_server.fine_tunes import events
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.fine_tunes.views import tuned_name
from tunesmith_server.registry import repository as registry_repository
from tunesmith_server.training.ownership import owned
from tunesmith_server.training.settlement import finish_cancelled

Write = Callable[[AsyncSession, FineTuneRow, int], Awaitable[None]]
"""Writes the success of a job at a time in Unix seconds."""


async def finished_before(session: AsyncSession, identity: AttemptIdentity) -> str | None:
    """The name of the job's model where this attempt has ended it already, and its call is repeated."""
    job = await jobs.get(session, identity.job_id)
    if job is None or job.state != State.SUCCEEDED or job.epoch != identity.epoch:
        return None
    return job.fine_tuned_model


async def finish(core: Core, identity: AttemptIdentity, write: Write) -> str:
    """Ends the attempt's job by `write` in one transaction and returns the name of its model.

    A job whose cancellation was asked for is cancelled instead. Raises FencedError then, and for an attempt that is
    no longer current.
    """
    now = int(core.clock())
    async with core.database.write() as session:
        job = await owned(session, identity)
        cancelled = job.cancel_requested
        if cancelled:
            await finish_cancelled(session, job, identity.attempt_id, now)
        else:
            await write(session, job, now)
    if cancelled:
        raise FencedError
    return tuned_name(job)


async def succeed(
    session: AsyncSession,
    job: FineTuneRow,
    lease: str,
    revision_id: str,
    states: Set[State],
    changes: Mapping[str, Any],
    now: int,
) -> None:
    """Takes a job that is in one of `states` to its success, with `changes`, and publishes its model.

    Raises FencedError when the attempt `lease` does not own the job any more.
    """
    name = tuned_name(job)
    moved = await jobs.transition(
        session,
        job.id,
        states,
        State.SUCCEEDED,
        lease=lease,
        now=now,
        events=[events.model_created(name), events.completed()],
        changes={
            **changes,
            "lease_token": None,
            "lease_expires_at": None,
            "fine_tuned_model": name,
            "revision": revision_id,
            "finished_at": now,
        },
    )
    if not moved:
        raise FencedError
    await registry_repository.publish_model(
        session,
        name=name,
        project_id=job.project_id,
        job_id=job.id,
        revision_id=revision_id,
        checkpoint=False,
        now=now,
    )
