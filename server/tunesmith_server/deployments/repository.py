"""Owns the SQL of deployments: what each name stands for now, what it stood for before, and the order of changes.

It must not know transports or models; each function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import and_, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import DeploymentRow, DeploymentVersionRow


async def find(session: AsyncSession, project_id: str, name: str) -> DeploymentRow | None:
    """The deployment, also one that was deleted, or None."""
    return await session.get(DeploymentRow, (project_id, name))


async def list_all(session: AsyncSession, project_id: str) -> list[DeploymentRow]:
    """The project's deployments by name."""
    query = select(DeploymentRow).where(DeploymentRow.project_id == project_id, DeploymentRow.deleted_at.is_(None))
    return list(await session.scalars(query.order_by(DeploymentRow.name)))


async def count(session: AsyncSession, project_id: str) -> int:
    """How many deployments the project has."""
    query = select(func.count()).select_from(DeploymentRow)
    found = await session.scalar(
        query.where(DeploymentRow.project_id == project_id, DeploymentRow.deleted_at.is_(None))
    )
    return found or 0


async def set_targets(session: AsyncSession, row: DeploymentRow, targets: list[Any], now: int) -> None:
    """Gives the deployment other targets as its next version; `row` may be new."""
    row.targets, row.number, row.updated_at = targets, row.number + 1, now
    session.add(row)
    await session.flush()
    session.add(
        DeploymentVersionRow(
            project_id=row.project_id, name=row.name, number=row.number, targets=targets, created_at=now
        )
    )


async def get_version(session: AsyncSession, row: DeploymentRow, number: int) -> DeploymentVersionRow | None:
    """One version of the deployment, or None."""
    return await session.get(DeploymentVersionRow, (row.project_id, row.name, number))


async def list_versions(
    session: AsyncSession, row: DeploymentRow, *, after: int | None, limit: int
) -> list[DeploymentVersionRow]:
    """Versions of the deployment below `after`, newest first."""
    query = select(DeploymentVersionRow).where(
        DeploymentVersionRow.project_id == row.project_id, DeploymentVersionRow.name == row.name
    )
    if after is not None:
        query = query.where(DeploymentVersionRow.number < after)
    return list(await session.scalars(query.order_by(DeploymentVersionRow.number.desc()).limit(limit)))


async def changed(session: AsyncSession, after: int, upto: int) -> list[DeploymentRow]:
    """Deployments, deleted ones too, whose last change has a number in (after, upto], oldest change first."""
    query = select(DeploymentRow).where(DeploymentRow.version > after, DeploymentRow.version <= upto)
    return list(await session.scalars(query.order_by(DeploymentRow.version)))


async def deployment_of(session: AsyncSession, project_id: str, model: str) -> str | None:
    """The name of a deployment of this project that stands for the model, if there is one."""
    rows = await session.scalars(
        select(DeploymentRow).where(DeploymentRow.project_id == project_id, DeploymentRow.deleted_at.is_(None))
    )
    return next((row.name for row in rows if model in _models(row)), None)


async def models_within_reach(session: AsyncSession) -> set[str]:
    """Every model that a deployment of any project stands for, or would stand for if it were rolled back now."""
    query = select(DeploymentVersionRow.targets).join(
        DeploymentRow,
        and_(
            DeploymentRow.project_id == DeploymentVersionRow.project_id, DeploymentRow.name == DeploymentVersionRow.name
        ),
    )
    query = query.where(DeploymentRow.deleted_at.is_(None), DeploymentVersionRow.number >= DeploymentRow.number - 1)
    return {target["model"] for targets in await session.scalars(query) for target in targets}


async def end(session: AsyncSession, row: DeploymentRow, now: int, version: int) -> None:
    """Leaves a tombstone under the name until it is given again; its versions stay."""
    own = (DeploymentRow.project_id == row.project_id, DeploymentRow.name == row.name)
    await session.execute(update(DeploymentRow).where(*own).values(deleted_at=now, version=version))


def _models(row: DeploymentRow) -> Iterable[str]:
    return (target["model"] for target in row.targets)
