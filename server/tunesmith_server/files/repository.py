"""Owns the SQL of files; every question names the project.

It must not know where bytes lie or who asks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import FileRow, FineTuneRow
from tunesmith_server.fine_tunes.state import TERMINAL


@dataclass(frozen=True, slots=True)
class FileQuery:
    """Which files to list. `after` is the row before the page; empty texts match everything."""

    limit: int
    after: FileRow | None = None
    ascending: bool = False
    purpose: str = ""
    sha256: str = ""


async def get(session: AsyncSession, project_id: str, file_id: str) -> FileRow | None:
    """The file unless it is deleted or another project's."""
    row = await get_cursor(session, project_id, file_id)
    return row if row is not None and row.deleted_at is None else None


async def get_cursor(session: AsyncSession, project_id: str, file_id: str) -> FileRow | None:
    """The row as a place in a list: a deleted one serves too, so that deleting while listing works."""
    return await session.scalar(select(FileRow).where(FileRow.id == file_id, FileRow.project_id == project_id))


async def insert(session: AsyncSession, row: FileRow) -> None:
    """Adds a file."""
    session.add(row)
    await session.flush()


async def list_page(session: AsyncSession, project_id: str, query: FileQuery) -> list[FileRow]:
    """Up to `limit` files in order of creation, newest first unless `ascending`."""
    place = tuple_(FileRow.position, FileRow.id)
    statement = select(FileRow).where(FileRow.project_id == project_id, FileRow.deleted_at.is_(None))
    if query.purpose:
        statement = statement.where(FileRow.purpose == query.purpose)
    if query.sha256:
        statement = statement.where(FileRow.sha256 == query.sha256)
    if query.after is not None:
        cursor = tuple_(query.after.position, query.after.id)
        statement = statement.where(place > cursor if query.ascending else place < cursor)
    columns = (FileRow.position, FileRow.id)
    order = [column.asc() if query.ascending else column.desc() for column in columns]
    return list(await session.scalars(statement.order_by(*order).limit(query.limit)))


async def find_job_using(session: AsyncSession, file_id: str) -> str | None:
    """Id of a job that has not ended and reads the file."""
    uses = or_(FineTuneRow.training_file_id == file_id, FineTuneRow.validation_file_id == file_id)
    statement = select(FineTuneRow.id).where(uses, FineTuneRow.state.not_in([state.value for state in TERMINAL]))
    return await session.scalar(statement.limit(1))


async def mark_deleted(session: AsyncSession, file_id: str, now: int) -> None:
    """Takes the file out of every answer; its row stays for the jobs that name it."""
    await session.execute(update(FileRow).where(FileRow.id == file_id).values(deleted_at=now))


async def unowned_keys(session: AsyncSession, keys: Collection[str]) -> set[str]:
    """Those storage keys that no live file points at, in any project."""
    unowned = set(keys)
    ordered = sorted(unowned)
    for start in range(0, len(ordered), 500):
        batch = ordered[start : start + 500]
        statement = select(FileRow.storage_key).where(FileRow.storage_key.in_(batch), FileRow.deleted_at.is_(None))
        unowned.difference_update(await session.scalars(statement))
    return unowned
