"""Owns the step back from a checkpoint that lies damaged in storage: the job goes on from an older one.

It must not know bytes: the run that cannot resume says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.fine_tunes import events
from tunesmith_server.training import repository
from tunesmith_server.training.outcomes import Cause, Ending
from tunesmith_server.training.ownership import amend

CHECKPOINT_DAMAGED = "checkpoint_damaged"
"""The code of a run that cannot resume from the checkpoint that its spec names."""


async def step_back(
    session: AsyncSession, identity: AttemptIdentity, endings: Sequence[Ending], now: int
) -> Sequence[Ending]:
    """Marks the checkpoint that the attempt was to resume from, if its run has ended for that.

    Returns what the run's end counts as. Raises FencedError, then nothing is written.
    """
    if endings[0].code != CHECKPOINT_DAMAGED:
        return endings
    found = await repository.resumable_checkpoints(session, identity.job_id, before_epoch=identity.epoch, limit=2)
    if not found:
        return endings  # it was given none: the next run would be no better off
    damaged, *older = found
    line = events.stepped_back(damaged.step, older[0].step if older else None)
    await amend(session, identity, now, events=[line])
    damaged.damaged_at = now
    return [replace(endings[0], cause=Cause.DAMAGED_CHECKPOINT), *endings[1:]]
