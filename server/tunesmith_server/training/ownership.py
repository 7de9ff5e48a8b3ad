"""Owns the fence: the check that an attempt owns its job, for reads and for writes.

It must not know what is written behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import FencedError
from tunesmith_server.fine_tunes import repository
from tunesmith_server.fine_tunes.events import NewEvent
from tunesmith_server.fine_tunes.repository import Standing
from tunesmith_server.fine_tunes.state import TERMINAL


async def owned(session: AsyncSession, identity: AttemptIdentity) -> FineTuneRow:
    """The job that the attempt owns; raises FencedError when it does not (any more)."""
    job = await repository.get(session, identity.job_id)
    if job is None or job.lease_token != identity.attempt_id or job.epoch != identity.epoch or job.state in TERMINAL:
        raise FencedError
    return job


async def amend(
    session: AsyncSession,
    identity: AttemptIdentity,
    now: int,
    *,
    events: Sequence[NewEvent] = (),
    changes: Mapping[str, Any] | None = None,
) -> Standing:
    """Writes columns and events while the attempt owns the job; raises FencedError, then nothing is written."""
    standing = await repository.amend(
        session, identity.job_id, lease=identity.attempt_id, now=now, events=events, changes=changes
    )
    if standing is None:
        raise FencedError
    return standing
