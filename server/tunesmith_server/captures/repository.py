"""Owns the SQL of captures; every question of a user names the project.

It must not know where the content lies or who asks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.json_pairs import has_pair
from tunesmith_server.db.tables import CaptureRow

WHOLE = ("stop", "tool_calls")
"""How answers end that were not cut off."""

_BATCH = 500


@dataclass(frozen=True, slots=True)
class CaptureFilter:
    """Which captures; what is empty or None matches everything. `until` is exclusive."""

    model: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    since: int | None = None
    until: int | None = None
    finish_reasons: Sequence[str] = ()


async def known(session: AsyncSession, ids: Collection[str]) -> set[str]:
    """Those of the ids that have a row, deleted ones too."""
    return set(await session.scalars(select(CaptureRow.id).where(CaptureRow.id.in_(ids))))


async def insert_missing(session: AsyncSession, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds those rows, by column, whose ids are not there."""
    insert: Any = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    await session.execute(insert(CaptureRow).on_conflict_do_nothing(), rows)


async def get(session: AsyncSession, project_id: str, capture_id: str) -> CaptureRow | None:
    """The capture unless it is deleted or another project's."""
    row = await get_cursor(session, project_id, capture_id)
    return row if row is not None and row.deleted_at is None else None


async def get_cursor(session: AsyncSession, project_id: str, capture_id: str) -> CaptureRow | None:
    """The row as a place in a list: a deleted one serves too, so that deleting while listing works."""
    query = select(CaptureRow).where(CaptureRow.id == capture_id, CaptureRow.project_id == project_id)
    return await session.scalar(query)


async def list_page(
    session: AsyncSession,
    project_id: str,
    which: CaptureFilter,
    *,
    after: CaptureRow | None,
    limit: int,
    ascending: bool,
) -> list[CaptureRow]:
    """Up to `limit` captures in the order in which they arrived, or the other way round."""
    query = _filtered(session, project_id, which)
    place = tuple_(CaptureRow.position, CaptureRow.id)
    if after is not None:
        cursor = tuple_(after.position, after.id)
        query = query.where(place > cursor if ascending else place < cursor)
    columns = (CaptureRow.position, CaptureRow.id)
    order = [column.asc() if ascending else column.desc() for column in columns]
    return list(await session.scalars(query.order_by(*order).limit(limit)))


async def change_metadata(session: AsyncSession, project_id: str, capture_id: str, metadata: dict[str, str]) -> bool:
    """Writes the metadata; False when there is no such capture."""
    own = (CaptureRow.id == capture_id, CaptureRow.project_id == project_id, CaptureRow.deleted_at.is_(None))
    statement = update(CaptureRow).where(*own).values(user_metadata=metadata).returning(CaptureRow.id)
    return await session.scalar(statement) is not None


async def mark_deleted(session: AsyncSession, project_id: str, capture_id: str, now: int) -> bool:
    """Takes the capture out of every answer; False when there is none."""
    own = (CaptureRow.id == capture_id, CaptureRow.project_id == project_id, CaptureRow.deleted_at.is_(None))
    statement = update(CaptureRow).where(*own).values(deleted_at=now).returning(CaptureRow.id)
    return await session.scalar(statement) is not None


async def delete_old(session: AsyncSession, before: int, now: int) -> list[tuple[str, str]]:
    """Marks captures from before that time deleted, some hundreds at once; returns their project and id."""
    old = select(CaptureRow.id).where(CaptureRow.created_at < before, CaptureRow.deleted_at.is_(None)).limit(_BATCH)
    statement = (
        update(CaptureRow)
        .where(CaptureRow.id.in_(old))
        .values(deleted_at=now)
        .returning(CaptureRow.project_id, CaptureRow.id)
    )
    return [(project_id, capture_id) for project_id, capture_id in await session.execute(statement)]


async def forget_deleted(session: AsyncSession, before: int) -> None:
    """Removes the rows of captures that were deleted before that time."""
    await session.execute(delete(CaptureRow).where(CaptureRow.deleted_at < before))


async def unowned_keys(session: AsyncSession, keys: Collection[str]) -> set[str]:
    """Those storage keys that no capture points at which is not deleted, in any project."""
    ids = {key.rpartition("/")[2]: key for key in keys}
    ordered = sorted(ids)
    for start in range(0, len(ordered), _BATCH):
        batch = ordered[start : start + _BATCH]
        query = select(CaptureRow.id).where(CaptureRow.id.in_(batch), CaptureRow.deleted_at.is_(None))
        for owned in await session.scalars(query):
            del ids[owned]
    return set(ids.values())


def _filtered(session: AsyncSession, project_id: str, which: CaptureFilter) -> Select[Any]:
    query = select(CaptureRow).where(CaptureRow.project_id == project_id, CaptureRow.deleted_at.is_(None))
    if which.model:
        query = query.where(CaptureRow.model == which.model)
    if which.since is not None:
        query = query.where(CaptureRow.created_at >= which.since)
    if which.until is not None:
        query = query.where(CaptureRow.created_at < which.until)
    if which.finish_reasons:
        query = query.where(CaptureRow.finish_reason.in_(which.finish_reasons))
    for key, value in which.metadata.items():
        query = query.where(has_pair(session, CaptureRow.user_metadata, key, value))
    return query
