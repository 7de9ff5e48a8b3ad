"""Owns the SQL of attempts, of waiting jobs and of the leader lease.

It must not know what an executor says; jobs change through fine_tunes/repository.py only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import AttemptRow, BaseModelRow, FineTuneRow, LeaseRow
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.registry.repository import FAILED, READY
from tunesmith_server.scheduling.capacity import RunKind

LIVE = "live"
ENDED = "ended"


@dataclass(frozen=True, slots=True)
class LiveAttempt:
    """An attempt whose run may still exist, with its job."""

    attempt: AttemptRow
    job: FineTuneRow

    @property
    def owns_job(self) -> bool:
        """Whether the job has not ended and was not taken from this attempt."""
        return self.job.lease_token == self.attempt.id


async def list_live(session: AsyncSession) -> list[LiveAttempt]:
    """All attempts whose runs may still exist, oldest first."""
    query = (
        select(AttemptRow, FineTuneRow)
        .join(FineTuneRow, AttemptRow.job_id == FineTuneRow.id)
        .where(AttemptRow.state == LIVE)
        .order_by(AttemptRow.created_at, AttemptRow.id)
    )
    return [LiveAttempt(attempt, job) for attempt, job in await session.execute(query)]


async def list_waiting(session: AsyncSession, kind: RunKind, now: float, limit: int) -> list[FineTuneRow]:
    """Jobs that could start a run of this kind now, oldest first: free, not backing off, base model ready."""
    state = State.VALIDATING_FILES if kind is RunKind.PREFLIGHT else State.QUEUED
    return await _list_free(session, [FineTuneRow.state == state, FineTuneRow.not_before <= now], READY, limit)


async def list_without_base(session: AsyncSession, limit: int) -> Sequence[FineTuneRow]:
    """Jobs that wait for a base model whose import has failed."""
    states = FineTuneRow.state.in_([State.VALIDATING_FILES, State.QUEUED])
    return await _list_free(session, [states], FAILED, limit)


async def insert_attempt(session: AsyncSession, row: AttemptRow) -> None:
    """Adds a live attempt."""
    session.add(row)
    await session.flush()


async def end_attempt(session: AsyncSession, attempt_id: str, *, cause: str, exit_code: int | None, now: int) -> bool:
    """Says that the attempt's run is over; False when that was said before."""
    values = {"state": ENDED, "end_cause": cause, "exit_code": exit_code, "ended_at": now}
    return await _update_live(session, attempt_id, values)


async def set_unreachable_since(session: AsyncSession, attempt_id: str, since: float | None) -> None:
    """Remembers from when on the executor could not tell; None: it can again."""
    await _update_live(session, attempt_id, {"unreachable_since": since})


async def take_lease(session: AsyncSession, name: str, token: str, *, now: float, expires_at: float) -> bool:
    """Takes or renews a named lease unless another token holds it."""
    mine_or_expired = or_(LeaseRow.token == token, LeaseRow.expires_at <= now)
    statement = update(LeaseRow).where(LeaseRow.name == name, mine_or_expired)
    taken = await session.scalar(statement.values(token=token, expires_at=expires_at).returning(LeaseRow.name))
    if taken is not None:
        return True
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    first = insert(LeaseRow).values(name=name, token=token, expires_at=expires_at)
    return await session.scalar(first.on_conflict_do_nothing().returning(LeaseRow.name)) is not None


async def release_lease(session: AsyncSession, name: str, token: str) -> None:
    """Lets the next one take the lease at once."""
    await session.execute(update(LeaseRow).where(LeaseRow.name == name, LeaseRow.token == token).values(expires_at=0.0))


async def _list_free(
    session: AsyncSession, conditions: list[ColumnElement[bool]], base_state: str, limit: int
) -> list[FineTuneRow]:
    # While a run of an earlier attempt may exist, the next one does not start.
    alive = select(AttemptRow.id).where(AttemptRow.job_id == FineTuneRow.id, AttemptRow.state == LIVE).exists()
    query = (
        select(FineTuneRow)
        .join(BaseModelRow, FineTuneRow.base_model_id == BaseModelRow.id)
        .where(*conditions, FineTuneRow.lease_token.is_(None), FineTuneRow.cancel_requested.is_(False))
        .where(BaseModelRow.state == base_state, ~alive)
        .order_by(FineTuneRow.position, FineTuneRow.id)
        .limit(limit)
    )
    return list(await session.scalars(query))


async def _update_live(session: AsyncSession, attempt_id: str, values: Mapping[str, object]) -> bool:
    statement = update(AttemptRow).where(AttemptRow.id == attempt_id, AttemptRow.state == LIVE).values(**values)
    written = await session.scalar(statement.returning(AttemptRow.id).execution_options(synchronize_session=False))
    return written is not None
