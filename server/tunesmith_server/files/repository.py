"""Owns the SQL of files; every question names the project.

It must not know where bytes lie or who asks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, not_, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from tunesmith_server.db.tables import CaptureRow, FileRow, FineTuneRow, UploadPartRow, UploadRow
from tunesmith_server.fine_tunes.state import TERMINAL, State

_SHOWN: tuple[InstrumentedAttribute[Any], ...] = (
    FileRow.id,
    FileRow.bytes,
    FileRow.created_at,
    FileRow.expires_at,
    FileRow.filename,
    FileRow.purpose,
    FileRow.status,
    FileRow.sha256,
)


@dataclass(frozen=True, slots=True)
class FileQuery:
    """Which files to list. `after` is the row before the page; empty texts match everything. What has expired at
    `now` is left out."""

    limit: int
    now: int
    after: FileRow | None = None
    ascending: bool = False
    purpose: str = ""
    sha256: str = ""


async def get(session: AsyncSession, project_id: str, file_id: str) -> FileRow | None:
    """The file unless it is deleted or another project's. One that expired stays readable for jobs that need it."""
    row = await get_cursor(session, project_id, file_id)
    return row if row is not None and row.deleted_at is None else None


async def get_live(session: AsyncSession, project_id: str, file_id: str, now: int) -> FileRow | None:
    """The file unless it is deleted, expired or another project's: what users see."""
    row = await get(session, project_id, file_id)
    return row if row is not None and (row.expires_at is None or row.expires_at > now) else None


async def get_cursor(session: AsyncSession, project_id: str, file_id: str) -> FileRow | None:
    """The row as a place in a list: a deleted one serves too, so that deleting while listing works."""
    return await session.scalar(select(FileRow).where(FileRow.id == file_id, FileRow.project_id == project_id))


async def insert(session: AsyncSession, row: FileRow) -> None:
    """Adds a file."""
    session.add(row)
    await session.flush()


async def list_page(session: AsyncSession, project_id: str, query: FileQuery) -> Sequence[Row[Any]]:
    """What users see of up to `limit` files, in few columns, in order of creation, newest first unless `ascending`."""
    place = tuple_(FileRow.position, FileRow.id)
    live = or_(FileRow.expires_at.is_(None), FileRow.expires_at > query.now)
    statement = select(*_SHOWN).where(FileRow.project_id == project_id, FileRow.deleted_at.is_(None), live)
    if query.purpose:
        statement = statement.where(FileRow.purpose == query.purpose)
    if query.sha256:
        statement = statement.where(FileRow.sha256 == query.sha256)
    if query.after is not None:
        cursor = tuple_(query.after.position, query.after.id)
        statement = statement.where(place > cursor if query.ascending else place < cursor)
    columns = (FileRow.position, FileRow.id)
    order = [column.asc() if query.ascending else column.desc() for column in columns]
    return (await session.execute(statement.order_by(*order).limit(query.limit))).all()


async def find_job_using(session: AsyncSession, file_id: str) -> str | None:
    """Id of a job that has not ended for its user and reads the file."""
    uses = or_(FineTuneRow.training_file_id == file_id, FineTuneRow.validation_file_id == file_id)
    return await session.scalar(select(FineTuneRow.id).where(uses, _has_not_ended()).limit(1))


async def mark_deleted(session: AsyncSession, file_id: str, now: int) -> None:
    """Takes the file out of every answer; its row stays for the jobs that name it."""
    await session.execute(update(FileRow).where(FileRow.id == file_id).values(deleted_at=now))


async def delete_expired(session: AsyncSession, now: int) -> list[str]:
    """Marks expired files deleted, except those that a job still needs, and returns their storage keys."""
    training = select(FineTuneRow.training_file_id).where(_has_not_ended())
    validation = select(FineTuneRow.validation_file_id).where(
        FineTuneRow.validation_file_id.is_not(None), _has_not_ended()
    )
    statement = update(FileRow).where(
        FileRow.deleted_at.is_(None),
        FileRow.expires_at <= now,
        FileRow.id.not_in(training),
        FileRow.id.not_in(validation),
    )
    return list(await session.scalars(statement.values(deleted_at=now).returning(FileRow.storage_key)))


async def stored_bytes(session: AsyncSession, project_id: str) -> int:
    """What the project takes of storage: its files, the parts of uploads under way, and captures."""
    files = select(func.coalesce(func.sum(FileRow.bytes), 0)).where(
        FileRow.project_id == project_id, FileRow.deleted_at.is_(None)
    )
    parts = (
        select(func.coalesce(func.sum(UploadPartRow.bytes), 0))
        .join(UploadRow, UploadRow.id == UploadPartRow.upload_id)
        .where(UploadRow.project_id == project_id, UploadRow.status == "pending")
    )
    captures = select(func.coalesce(func.sum(CaptureRow.bytes), 0)).where(
        CaptureRow.project_id == project_id, CaptureRow.deleted_at.is_(None)
    )
    return sum([int(await session.scalar(query) or 0) for query in (files, parts, captures)])


async def unowned_keys(session: AsyncSession, keys: Collection[str]) -> set[str]:
    """Those storage keys that no live file points at, in any project."""
    unowned = set(keys)
    ordered = sorted(unowned)
    for start in range(0, len(ordered), 500):
        batch = ordered[start : start + 500]
        statement = select(FileRow.storage_key).where(FileRow.storage_key.in_(batch), FileRow.deleted_at.is_(None))
        unowned.difference_update(await session.scalars(statement))
    return unowned


def _has_not_ended() -> ColumnElement[bool]:
    # An estimate pauses when it is complete, and never reads its files again.
    complete = and_(FineTuneRow.kind == "estimate", FineTuneRow.state == State.PAUSED.value)
    # States that are named are found by the index; jobs that have ended become many.
    alive = FineTuneRow.state.in_([state.value for state in State if state not in TERMINAL])
    # Whoever cancels a job need not wait for its run: without its files that ends as cancelled, too.
    return and_(alive, FineTuneRow.cancel_requested.is_(False), not_(complete))
