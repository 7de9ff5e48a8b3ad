"""Owns the SQL of the audit log, which only grows.

It must not know which calls are written down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import AuditRow


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which lines to list. Empty sequences match everything; times are Unix seconds, `until` exclusive."""

    limit: int
    after: AuditRow | None = None
    project_ids: Sequence[str] = ()
    key_ids: Sequence[str] = ()
    actions: Sequence[str] = ()
    target_ids: Sequence[str] = ()
    since: int | None = None
    until: int | None = None


async def insert_all(session: AsyncSession, lines: Sequence[Mapping[str, object]]) -> None:
    """Adds lines, given by their columns; one that is there already stays as it is."""
    insert: Any = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    await session.execute(insert(AuditRow).on_conflict_do_nothing(), [dict(line) for line in lines])


async def get(session: AsyncSession, line_id: str) -> AuditRow | None:
    """One line, or None."""
    return await session.get(AuditRow, line_id)


async def list_page(session: AsyncSession, query: AuditQuery) -> list[AuditRow]:
    """Up to `limit` lines, newest first."""
    statement = select(AuditRow)
    for column, values in (
        (AuditRow.project_id, query.project_ids),
        (AuditRow.key_id, query.key_ids),
        (AuditRow.action, query.actions),
        (AuditRow.target_id, query.target_ids),
    ):
        if values:
            statement = statement.where(column.in_(values))
    if query.since is not None:
        statement = statement.where(AuditRow.created_at >= query.since)
    if query.until is not None:
        statement = statement.where(AuditRow.created_at < query.until)
    place = tuple_(AuditRow.position, AuditRow.id)
    if query.after is not None:
        statement = statement.where(place < tuple_(query.after.position, query.after.id))
    statement = statement.order_by(AuditRow.position.desc(), AuditRow.id.desc())
    return list(await session.scalars(statement.limit(query.limit)))
