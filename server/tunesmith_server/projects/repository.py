"""Owns the SQL of projects and API keys.

It must not know how a key is made or hashed.
"""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import ApiKeyRow, ProjectRow


async def get_project(session: AsyncSession, project_id: str) -> ProjectRow | None:
    """The project, or None."""
    return await session.get(ProjectRow, project_id)


async def insert_project(session: AsyncSession, row: ProjectRow) -> None:
    """Adds a project."""
    session.add(row)
    await session.flush()


async def count_keys(session: AsyncSession, project_id: str) -> int:
    """Keys of the project, revoked ones too."""
    statement = select(func.count()).select_from(ApiKeyRow).where(ApiKeyRow.project_id == project_id)
    return (await session.scalar(statement)) or 0


async def find_key(session: AsyncSession, key_hash: str) -> ApiKeyRow | None:
    """The key with this hash, revoked or not."""
    return await session.scalar(select(ApiKeyRow).where(ApiKeyRow.hash == key_hash))


async def insert_key(session: AsyncSession, row: ApiKeyRow) -> None:
    """Adds a key."""
    session.add(row)
    await session.flush()


async def list_keys(session: AsyncSession, project_id: str) -> list[ApiKeyRow]:
    """Keys of the project, oldest first, revoked ones too."""
    statement = select(ApiKeyRow).where(ApiKeyRow.project_id == project_id).order_by(ApiKeyRow.created_at, ApiKeyRow.id)
    return list(await session.scalars(statement))


async def revoke_key(session: AsyncSession, project_id: str, key_id: str, now: int) -> bool:
    """Marks a key as revoked; False when the project has no such live key."""
    statement = (
        update(ApiKeyRow)
        .where(ApiKeyRow.id == key_id, ApiKeyRow.project_id == project_id, ApiKeyRow.revoked_at.is_(None))
        .values(revoked_at=now)
        .returning(ApiKeyRow.id)
    )
    return await session.scalar(statement) is not None
