"""Owns the SQL of what trackers are still to hear.

It must not know trackers or who speaks to them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import FineTuneRow, TrackedRunRow
from tunesmith_server.fine_tunes.state import TERMINAL, State

MOVING = frozenset({State.RUNNING, State.PAUSING})
"""States in which a job has a run that reports steps."""


async def insert_runs(session: AsyncSession, job: FineTuneRow) -> None:
    """One row for each tracker that the job names."""
    if job.integrations:
        session.add_all(
            TrackedRunRow(job_id=job.id, tracker=each["type"], not_before=0.0, failures=0) for each in job.integrations
        )
        await session.flush()


async def due_runs(session: AsyncSession, now: float, limit: int) -> list[TrackedRunRow]:
    """Rows whose job runs or has ended and whose time has come, longest due first."""
    speaking = [state.value for state in MOVING | TERMINAL]
    query = (
        select(TrackedRunRow)
        .join(FineTuneRow, FineTuneRow.id == TrackedRunRow.job_id)
        .where(TrackedRunRow.not_before <= now, FineTuneRow.state.in_(speaking))
        .order_by(TrackedRunRow.not_before, TrackedRunRow.job_id)
    )
    return list(await session.scalars(query.limit(limit)))


async def change_run(session: AsyncSession, run: TrackedRunRow, **values: Any) -> None:
    """Writes columns of one row."""
    await session.execute(_this(update(TrackedRunRow), run).values(**values))


async def delete_run(session: AsyncSession, run: TrackedRunRow) -> None:
    """The tracker has heard everything, or is told no more."""
    await session.execute(_this(delete(TrackedRunRow), run))


def _this(statement: Any, run: TrackedRunRow) -> Any:
    this = statement.where(TrackedRunRow.job_id == run.job_id, TrackedRunRow.tracker == run.tracker)
    return this.execution_options(synchronize_session=False)
