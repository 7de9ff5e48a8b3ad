"""Owns the SQL of what runs deliver: checkpoints and step metrics.

It must not know who may write; the service checks the lease in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import CheckpointRow, JsonObject, StepMetricRow


async def upsert_metrics(session: AsyncSession, job_id: str, metrics: Sequence[JsonObject]) -> set[int]:
    """Keeps the measures of each optimizer step (`step` in each); those of a repeated step replace the older ones.

    Returns the steps that had no measures before.
    """
    steps = {data["step"] for data in metrics}
    query = select(StepMetricRow.step).where(StepMetricRow.job_id == job_id, StepMetricRow.step.in_(steps))
    known = set(await session.scalars(query)) if steps else set()
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    for data in metrics:
        statement = insert(StepMetricRow).values(job_id=job_id, step=data["step"], data=data)
        await session.execute(
            statement.on_conflict_do_update(index_elements=["job_id", "step"], set_={"data": statement.excluded.data})
        )
    return steps - known


async def insert_checkpoint(session: AsyncSession, row: CheckpointRow) -> None:
    """Adds a checkpoint; raises IntegrityError when the job has one of this step."""
    session.add(row)
    await session.flush()


async def find_checkpoint(session: AsyncSession, job_id: str, step: int) -> CheckpointRow | None:
    """The job's checkpoint of one step, or None."""
    return await session.scalar(select(CheckpointRow).where(CheckpointRow.job_id == job_id, CheckpointRow.step == step))


async def get_checkpoint(session: AsyncSession, job_id: str, checkpoint_id: str) -> CheckpointRow | None:
    """The job's checkpoint with this id, or None."""
    query = select(CheckpointRow).where(CheckpointRow.id == checkpoint_id, CheckpointRow.job_id == job_id)
    return await session.scalar(query)


async def list_checkpoints(
    session: AsyncSession, job_id: str, *, after: CheckpointRow | None = None, limit: int
) -> list[CheckpointRow]:
    """The job's checkpoints, newest first."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == job_id)
    if after is not None:
        query = query.where(CheckpointRow.step < after.step)
    return list(await session.scalars(query.order_by(CheckpointRow.step.desc()).limit(limit)))
