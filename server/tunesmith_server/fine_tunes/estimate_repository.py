"""Owns the SQL of the removal of estimates.

It must not know when an estimate is old.
"""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import AttemptRow, EventRow, FineTuneRow, StepMetricRow
from tunesmith_server.fine_tunes.repository import ESTIMATE


async def list_older(session: AsyncSession, before: int, limit: int) -> list[FineTuneRow]:
    """Estimates that were made before `before` (Unix seconds)."""
    query = select(FineTuneRow).where(FineTuneRow.kind == ESTIMATE, FineTuneRow.created_at < before)
    return list(await session.scalars(query.order_by(FineTuneRow.created_at).limit(limit)))


async def remove(session: AsyncSession, estimate_id: str) -> bool:
    """Removes an estimate with its history; False, and nothing is removed, while a run of it may exist."""
    live = select(AttemptRow.id).where(AttemptRow.job_id == estimate_id, AttemptRow.state == "live")
    if await session.scalar(live.limit(1)) is not None:
        return False
    for table in (EventRow, StepMetricRow, AttemptRow):
        await session.execute(delete(table).where(table.job_id == estimate_id))
    await session.execute(delete(FineTuneRow).where(FineTuneRow.id == estimate_id, FineTuneRow.kind == ESTIMATE))
    return True
