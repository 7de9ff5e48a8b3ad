"""Owns the SQL of attempts and of jobs that wait and run.

It must not know what an executor says; jobs change through fine_tunes/repository.py only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import (
    AttemptRow,
    BaseModelRow,
    CheckpointRow,
    FineTuneRow,
    JsonObject,
    ProjectRow,
)
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


async def list_holders(session: AsyncSession) -> Sequence[Row[Any]]:
    """What the queue must know of each live attempt, in few columns: there may be a thousand, every second."""
    query = (
        select(
            AttemptRow.id.label("attempt_id"),
            AttemptRow.kind,
            AttemptRow.device_ids,
            AttemptRow.created_at,
            FineTuneRow.id.label("job_id"),
            FineTuneRow.project_id,
            FineTuneRow.priority,
            FineTuneRow.state,
            FineTuneRow.lease_token,
            FineTuneRow.cancel_requested,
            FineTuneRow.preempt_requested,
            FineTuneRow.progress["estimated_finish"].as_float().label("estimated_finish"),
        )
        .join(FineTuneRow, AttemptRow.job_id == FineTuneRow.id)
        .where(AttemptRow.state == LIVE)
        .order_by(AttemptRow.created_at, AttemptRow.id)
    )
    return (await session.execute(query)).all()


async def list_waiting(session: AsyncSession, kind: RunKind, now: float, per_project: int) -> Sequence[Row[Any]]:
    """Jobs that could start a run of this kind now: free, not backing off, base model ready.

    Of each project so many, those of high priority and age first: a long queue of one must not hide the others'.
    """
    place = (
        func.row_number()
        .over(
            partition_by=FineTuneRow.project_id,
            order_by=(FineTuneRow.priority.desc(), FineTuneRow.position, FineTuneRow.id),
        )
        .label("place")
    )
    state = State.VALIDATING_FILES if kind is RunKind.PREFLIGHT else State.QUEUED
    ranked = (
        select(FineTuneRow.id.label("job_id"), place)
        .join(BaseModelRow, FineTuneRow.base_model_id == BaseModelRow.id)
        .where(FineTuneRow.state == state, FineTuneRow.not_before <= now, *_free(), BaseModelRow.state == READY)
        .subquery()
    )
    query = (
        select(
            FineTuneRow.id.label("job_id"),
            FineTuneRow.project_id,
            FineTuneRow.priority,
            FineTuneRow.position,
            FineTuneRow.devices,
            FineTuneRow.report["seconds"].as_float().label("expected_seconds"),
        )
        .join(ranked, FineTuneRow.id == ranked.c.job_id)
        .where(ranked.c.place <= per_project)
    )
    return (await session.execute(query)).all()


async def list_without_base(session: AsyncSession, limit: int) -> list[tuple[FineTuneRow, str | None]]:
    """Jobs that wait for a base model whose import has failed, and what users may hear of the reason."""
    failed = select(BaseModelRow.id, BaseModelRow.unsupported).where(BaseModelRow.state == FAILED)
    unsupported = {row.id: row.unsupported for row in await session.execute(failed)}
    if not unsupported:
        return []
    query = (
        select(FineTuneRow)
        .where(FineTuneRow.state.in_([State.VALIDATING_FILES, State.QUEUED]), *_free())
        .where(FineTuneRow.base_model_id.in_(unsupported))
        .limit(limit)
    )
    return [(job, unsupported[job.base_model_id]) for job in await session.scalars(query)]


async def quotas_by_project(session: AsyncSession, project_ids: Iterable[str]) -> dict[str, JsonObject]:
    """The stored quotas of these projects."""
    query = select(ProjectRow.id, ProjectRow.quotas).where(ProjectRow.id.in_(sorted(project_ids)))
    return {row.id: row.quotas for row in await session.execute(query)}


async def newest_checkpoints(session: AsyncSession, job_ids: Iterable[str]) -> dict[str, int]:
    """When each of these jobs last saved its work, in Unix seconds; a job that never did is absent."""
    query = (
        select(CheckpointRow.job_id, func.max(CheckpointRow.created_at).label("saved_at"))
        .where(CheckpointRow.job_id.in_(sorted(job_ids)))
        .group_by(CheckpointRow.job_id)
    )
    return {row.job_id: row.saved_at for row in await session.execute(query)}


async def insert_attempts(session: AsyncSession, rows: Sequence[AttemptRow]) -> None:
    """Adds live attempts."""
    session.add_all(rows)
    await session.flush()


async def end_attempt(session: AsyncSession, attempt_id: str, *, cause: str, exit_code: int | None, now: int) -> bool:
    """Says that the attempt's run is over; False when that was said before."""
    values = {"state": ENDED, "end_cause": cause, "exit_code": exit_code, "ended_at": now}
    return await _update_live(session, attempt_id, values)


async def set_unreachable_since(session: AsyncSession, attempt_id: str, since: float | None) -> None:
    """Remembers from when on the executor could not tell; None: it can again."""
    await _update_live(session, attempt_id, {"unreachable_since": since})


def _free() -> list[ColumnElement[bool]]:
    # While a run of an earlier attempt may exist, the next one does not start.
    alive = select(AttemptRow.id).where(AttemptRow.job_id == FineTuneRow.id, AttemptRow.state == LIVE).exists()
    return [FineTuneRow.lease_token.is_(None), FineTuneRow.cancel_requested.is_(False), ~alive]


async def _update_live(session: AsyncSession, attempt_id: str, values: Mapping[str, object]) -> bool:
    statement = update(AttemptRow).where(AttemptRow.id == attempt_id, AttemptRow.state == LIVE).values(**values)
    written = await session.scalar(statement.returning(AttemptRow.id).execution_options(synchronize_session=False))
    return written is not None
