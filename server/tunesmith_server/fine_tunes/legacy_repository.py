"""Owns the SQL that the old API needs beside that of jobs: whole files, and when jobs last changed.

It must not know shapes.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import EventRow, FileRow


async def get_files(session: AsyncSession, project_id: str, ids: Collection[str]) -> dict[str, FileRow]:
    """The project's files by id, deleted ones too: jobs go on naming them."""
    query = select(FileRow).where(FileRow.project_id == project_id, FileRow.id.in_(ids))
    return {row.id: row for row in await session.scalars(query)}


async def last_changes(session: AsyncSession, job_ids: Collection[str]) -> dict[str, int]:
    """Unix seconds of the newest event of each job."""
    query = select(EventRow.job_id, func.max(EventRow.created_at)).where(EventRow.job_id.in_(job_ids))
    return {row[0]: int(row[1]) for row in await session.execute(query.group_by(EventRow.job_id))}
