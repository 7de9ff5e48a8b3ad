"""Owns the SQL of what runs deliver: checkpoints and step metrics.

It must not know who may write; the service checks the lease in the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import bindparam, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import (
    AttemptRow,
    Base,
    CheckpointPermissionRow,
    CheckpointRow,
    FineTuneRow,
    JsonObject,
    ModelRow,
    StepMetricRow,
)
from tunesmith_server.fine_tunes.state import TERMINAL, State

_UNENDED = [state.value for state in State if state not in TERMINAL]


async def known_steps(session: AsyncSession, job_id: str, metrics: Sequence[JsonObject]) -> set[int]:
    """Those of the steps (`step` in each) that have measures already."""
    if not metrics:
        return set()
    steps = {data["step"] for data in metrics}
    return set(await session.scalars(_KNOWN_STEPS, {"job_id": job_id, "steps": steps}))


async def upsert_metrics(session: AsyncSession, job_id: str, metrics: Sequence[JsonObject]) -> None:
    """Keeps the measures of each optimizer step; those of a repeated step replace the older ones."""
    if not metrics:
        return
    newest = {data["step"]: data for data in metrics}
    await session.execute(
        _UPSERT_METRICS[session.get_bind().dialect.name],
        [{"job_id": job_id, "step": step, "data": data} for step, data in newest.items()],
    )


async def put_checkpoint(session: AsyncSession, row: CheckpointRow) -> bool:
    """Adds a checkpoint, under the id of the job's damaged or retired one of this step if there is one.

    False, and nothing is written, where the job keeps a sound one of this step.
    """
    values = {column.name: getattr(row, column.name) for column in CheckpointRow.__table__.columns}
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(CheckpointRow).values(values)
    statement = statement.on_conflict_do_update(
        index_elements=["job_id", "step"],
        set_={name: statement.excluded[name] for name in values if name != "id"},
        where=or_(CheckpointRow.damaged_at.is_not(None), CheckpointRow.removed_at.is_not(None)),
    )
    return await session.scalar(statement.returning(CheckpointRow.id)) is not None


async def find_checkpoint(session: AsyncSession, job_id: str, step: int) -> CheckpointRow | None:
    """The job's checkpoint of one step, or None."""
    return await session.scalar(select(CheckpointRow).where(CheckpointRow.job_id == job_id, CheckpointRow.step == step))


async def has_checkpoint_of(session: AsyncSession, job_id: str, epoch: int) -> bool:
    """Whether the attempt with this epoch has committed one."""
    query = select(CheckpointRow.id).where(CheckpointRow.job_id == job_id, CheckpointRow.epoch == epoch).limit(1)
    return await session.scalar(query) is not None


async def get_checkpoint(session: AsyncSession, job_id: str, checkpoint_id: str) -> CheckpointRow | None:
    """The job's checkpoint with this id, or None."""
    query = select(CheckpointRow).where(CheckpointRow.id == checkpoint_id, CheckpointRow.job_id == job_id)
    return await session.scalar(query)


async def list_checkpoints(
    session: AsyncSession, job_id: str, *, after: CheckpointRow | None = None, limit: int
) -> list[CheckpointRow]:
    """The checkpoints that the job keeps and whose models nobody has deleted, newest first."""
    deleted = select(ModelRow.name).where(ModelRow.name == CheckpointRow.model_name, ModelRow.deleted_at.is_not(None))
    query = select(CheckpointRow).where(
        CheckpointRow.job_id == job_id, CheckpointRow.removed_at.is_(None), ~deleted.exists()
    )
    if after is not None:
        query = query.where(CheckpointRow.step < after.step)
    return list(await session.scalars(query.order_by(CheckpointRow.step.desc()).limit(limit)))


async def resumable_checkpoints(
    session: AsyncSession, job_id: str, *, before_epoch: int, limit: int
) -> list[CheckpointRow]:
    """The checkpoints that an attempt of this epoch can resume from, newest first: those of earlier attempts."""
    query = select(CheckpointRow).where(
        CheckpointRow.job_id == job_id,
        CheckpointRow.epoch < before_epoch,
        CheckpointRow.removed_at.is_(None),
        CheckpointRow.damaged_at.is_(None),
    )
    return list(await session.scalars(query.order_by(CheckpointRow.step.desc()).limit(limit)))


async def all_checkpoints(session: AsyncSession, job_id: str) -> list[CheckpointRow]:
    """Every checkpoint that the job keeps."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == job_id, CheckpointRow.removed_at.is_(None))
    return list(await session.scalars(query))


async def jobs_with_more_checkpoints(session: AsyncSession, than: int, limit: int) -> list[str]:
    """Ids of jobs that keep more checkpoints than this."""
    kept = select(CheckpointRow.job_id).where(CheckpointRow.removed_at.is_(None)).group_by(CheckpointRow.job_id)
    return list(await session.scalars(kept.having(func.count() > than).order_by(CheckpointRow.job_id).limit(limit)))


async def referred_checkpoints(session: AsyncSession, job_id: str) -> set[str]:
    """Ids of the job's checkpoints that others need.

    They are shared with a project, or a model other than their own stands for them, or a job starts from them.
    """
    shared = select(CheckpointPermissionRow.checkpoint_id)
    named = select(ModelRow.revision).where(ModelRow.checkpoint.is_(False), ModelRow.deleted_at.is_(None))
    started = select(FineTuneRow.start_revision).where(
        FineTuneRow.state.in_(_UNENDED), FineTuneRow.start_revision.is_not(None)
    )
    query = select(CheckpointRow.id).where(
        CheckpointRow.job_id == job_id,
        or_(
            CheckpointRow.id.in_(shared),
            CheckpointRow.revision.in_(named),
            CheckpointRow.revision.in_(started),
        ),
    )
    return set(await session.scalars(query))


async def removed_prefixes(session: AsyncSession, job_ids: Collection[str]) -> set[str]:
    """Prefixes of the checkpoints that these jobs do not keep any more."""
    query = select(CheckpointRow.prefix).where(CheckpointRow.removed_at.is_not(None))
    return set(await session.scalars(query.where(CheckpointRow.job_id.in_(job_ids))))


async def live_epochs(session: AsyncSession, job_ids: Collection[str]) -> set[tuple[str, int]]:
    """Job and epoch of those attempts of the jobs whose runs may still exist."""
    query = select(AttemptRow.job_id, AttemptRow.epoch)
    rows = await session.execute(query.where(AttemptRow.job_id.in_(job_ids), AttemptRow.state == "live"))
    return {(job_id, epoch) for job_id, epoch in rows}


async def resumable_prefixes(session: AsyncSession, job_ids: Collection[str]) -> set[str]:
    """Prefixes of the checkpoints that those of the jobs keep that have not ended."""
    query = select(CheckpointRow.prefix).join(FineTuneRow, FineTuneRow.id == CheckpointRow.job_id)
    query = query.where(CheckpointRow.removed_at.is_(None))
    return set(
        await session.scalars(query.where(CheckpointRow.job_id.in_(job_ids), FineTuneRow.state.not_in(TERMINAL)))
    )


def _upsert_metrics(insert: Any) -> Any:
    statement = insert(Base.metadata.tables[StepMetricRow.__tablename__])
    return statement.on_conflict_do_update(index_elements=["job_id", "step"], set_={"data": statement.excluded.data})


# Built once: every heartbeat runs them, and to build one takes as long as to run it.
_KNOWN_STEPS = select(StepMetricRow.step).where(
    StepMetricRow.job_id == bindparam("job_id"), StepMetricRow.step.in_(bindparam("steps", expanding=True))
)
_UPSERT_METRICS = {"postgresql": _upsert_metrics(postgresql.insert), "sqlite": _upsert_metrics(sqlite.insert)}
