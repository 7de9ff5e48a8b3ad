"""Owns the SQL of projects and API keys.

It must not know how a key is made or hashed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import ApiKeyRow, ProjectRow


async def get_project(session: AsyncSession, project_id: str) -> ProjectRow | None:
    """The project, archived or not, or None."""
    return await session.get(ProjectRow, project_id)


async def in_turn(session: AsyncSession, project_id: str) -> None:
    """Puts transactions that decide by what the whole project has one after the other, by an update of nothing.

    What they read after it is as the one before has left it.
    """
    nothing = update(ProjectRow).where(ProjectRow.id == project_id).values(name=ProjectRow.name)
    await session.execute(nothing.execution_options(synchronize_session=False))


async def insert_project(session: AsyncSession, row: ProjectRow) -> None:
    """Adds a project."""
    session.add(row)
    await session.flush()


async def list_projects(
    session: AsyncSession, *, limit: int, after: ProjectRow | None = None, archived_too: bool = False
) -> list[ProjectRow]:
    """Up to `limit` projects, oldest first."""
    statement = select(ProjectRow)
    if not archived_too:
        statement = statement.where(ProjectRow.archived_at.is_(None))
    if after is not None:
        statement = statement.where(tuple_(ProjectRow.created_at, ProjectRow.id) > tuple_(after.created_at, after.id))
    return list(await session.scalars(statement.order_by(ProjectRow.created_at, ProjectRow.id).limit(limit)))


async def change_project(session: AsyncSession, project_id: str, changes: Mapping[str, Any]) -> bool:
    """Writes columns of a project that is not archived; False when there is none."""
    statement = (
        update(ProjectRow)
        .where(ProjectRow.id == project_id, ProjectRow.archived_at.is_(None))
        .values(changes)
        .returning(ProjectRow.id)
    )
    return await session.scalar(statement) is not None


async def count_keys(session: AsyncSession, project_id: str) -> int:
    """Keys of the project, revoked ones too."""
    statement = select(func.count()).select_from(ApiKeyRow).where(ApiKeyRow.project_id == project_id)
    return (await session.scalar(statement)) or 0


async def find_key(session: AsyncSession, key_hash: str) -> tuple[ApiKeyRow, ProjectRow] | None:
    """The key with this hash, revoked or not, and its project."""
    statement = (
        select(ApiKeyRow, ProjectRow)
        .join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
        .where(ApiKeyRow.hash == key_hash)
    )
    found = (await session.execute(statement)).first()
    return None if found is None else (found[0], found[1])


async def get_key(session: AsyncSession, project_id: str, key_id: str) -> ApiKeyRow | None:
    """The project's key unless it is revoked."""
    statement = select(ApiKeyRow).where(
        ApiKeyRow.id == key_id, ApiKeyRow.project_id == project_id, ApiKeyRow.revoked_at.is_(None)
    )
    return await session.scalar(statement)


async def get_key_as_cursor(session: AsyncSession, project_id: str, key_id: str) -> ApiKeyRow | None:
    """The project's key as a place in a list: a revoked one serves too, so that revoking while listing works."""
    return await session.scalar(select(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.project_id == project_id))


async def insert_key(session: AsyncSession, row: ApiKeyRow) -> None:
    """Adds a key."""
    session.add(row)
    await session.flush()


async def list_keys(
    session: AsyncSession,
    project_id: str,
    *,
    limit: int | None = None,
    after: ApiKeyRow | None = None,
    revoked_too: bool = True,
) -> list[ApiKeyRow]:
    """Keys of the project, oldest first."""
    statement = select(ApiKeyRow).where(ApiKeyRow.project_id == project_id)
    if not revoked_too:
        statement = statement.where(ApiKeyRow.revoked_at.is_(None))
    if after is not None:
        statement = statement.where(tuple_(ApiKeyRow.created_at, ApiKeyRow.id) > tuple_(after.created_at, after.id))
    return list(await session.scalars(statement.order_by(ApiKeyRow.created_at, ApiKeyRow.id).limit(limit)))


async def revoke_key(session: AsyncSession, project_id: str, key_id: str, now: int) -> bool:
    """Marks a key as revoked; False when the project has no such live key."""
    return await change_key(session, project_id, key_id, {"revoked_at": now})


async def change_key(session: AsyncSession, project_id: str, key_id: str, changes: Mapping[str, Any]) -> bool:
    """Writes columns of a live key; False when the project has no such key."""
    statement = (
        update(ApiKeyRow)
        .where(ApiKeyRow.id == key_id, ApiKeyRow.project_id == project_id, ApiKeyRow.revoked_at.is_(None))
        .values(changes)
        .returning(ApiKeyRow.id)
    )
    return await session.scalar(statement) is not None


async def note_use(session: AsyncSession, key_id: str, at: int) -> None:
    """Writes when a key was last used; an earlier time never replaces a later one."""
    newer = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < at)
    await session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key_id, newer).values(last_used_at=at))
