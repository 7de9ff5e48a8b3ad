"""Owns the SQL of checkpoint permissions.

It must not know who may give them or what they are worth elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import CheckpointPermissionRow, CheckpointRow, ModelRow, ProjectRow


@dataclass(frozen=True, slots=True)
class PermissionQuery:
    """Which permissions to list. `after` is the row before the page; an empty project matches all."""

    limit: int
    after: CheckpointPermissionRow | None = None
    ascending: bool = False
    project_id: str = ""


async def find_checkpoint(session: AsyncSession, model_name: str) -> CheckpointRow | None:
    """The checkpoint that answers under this name, of any project, or None."""
    # Through the model, whose name is a key: the checkpoints' own names have no index.
    job_id = select(ModelRow.job_id).where(ModelRow.name == model_name, ModelRow.deleted_at.is_(None))
    query = select(CheckpointRow).where(CheckpointRow.job_id.in_(job_id), CheckpointRow.model_name == model_name)
    return await session.scalar(query)


async def unknown_projects(session: AsyncSession, project_ids: Collection[str]) -> list[str]:
    """Those that are no project, or an archived one."""
    query = select(ProjectRow.id).where(ProjectRow.id.in_(project_ids), ProjectRow.archived_at.is_(None))
    return sorted(set(project_ids) - set(await session.scalars(query)))


async def insert(session: AsyncSession, row: CheckpointPermissionRow) -> None:
    """Adds a permission unless the project has it already."""
    insert_into = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert_into(CheckpointPermissionRow).values(
        id=row.id, checkpoint_id=row.checkpoint_id, project_id=row.project_id, created_at=row.created_at
    )
    await session.execute(statement.on_conflict_do_nothing(index_elements=["checkpoint_id", "project_id"]))


async def get(session: AsyncSession, checkpoint_id: str, permission_id: str) -> CheckpointPermissionRow | None:
    """One permission of this checkpoint, or None."""
    query = select(CheckpointPermissionRow).where(
        CheckpointPermissionRow.id == permission_id, CheckpointPermissionRow.checkpoint_id == checkpoint_id
    )
    return await session.scalar(query)


async def list_page(session: AsyncSession, checkpoint_id: str, query: PermissionQuery) -> list[CheckpointPermissionRow]:
    """Up to `limit` permissions in order of creation, newest first unless `ascending`."""
    place = tuple_(CheckpointPermissionRow.position, CheckpointPermissionRow.id)
    statement = select(CheckpointPermissionRow).where(CheckpointPermissionRow.checkpoint_id == checkpoint_id)
    if query.project_id:
        statement = statement.where(CheckpointPermissionRow.project_id == query.project_id)
    if query.after is not None:
        cursor = tuple_(query.after.position, query.after.id)
        statement = statement.where(place > cursor if query.ascending else place < cursor)
    columns = (CheckpointPermissionRow.position, CheckpointPermissionRow.id)
    order = [column.asc() if query.ascending else column.desc() for column in columns]
    return list(await session.scalars(statement.order_by(*order).limit(query.limit)))


async def remove(session: AsyncSession, checkpoint_id: str, permission_id: str) -> bool:
    """Ends a permission; False when there is none."""
    statement = delete(CheckpointPermissionRow).where(
        CheckpointPermissionRow.id == permission_id, CheckpointPermissionRow.checkpoint_id == checkpoint_id
    )
    removed = await session.scalar(statement.returning(CheckpointPermissionRow.id))
    return removed is not None
