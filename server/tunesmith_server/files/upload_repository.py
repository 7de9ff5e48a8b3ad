"""Owns the SQL of uploads and their parts; every question names the project.

It must not know where bytes lie. An upload leaves `pending` once, by compare-and-set, whatever happens beside it.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import UploadPartRow, UploadRow


class UploadStatus(StrEnum):
    """Where an upload is; only a pending one takes parts."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


async def get(session: AsyncSession, project_id: str, upload_id: str) -> UploadRow | None:
    """The upload unless it is another project's."""
    return await session.scalar(select(UploadRow).where(UploadRow.id == upload_id, UploadRow.project_id == project_id))


async def insert(session: AsyncSession, row: UploadRow) -> None:
    """Adds an upload."""
    session.add(row)
    await session.flush()


async def list_parts(session: AsyncSession, upload_id: str) -> list[UploadPartRow]:
    """What has been stored of the upload, oldest first."""
    statement = select(UploadPartRow).where(UploadPartRow.upload_id == upload_id)
    return list(await session.scalars(statement.order_by(UploadPartRow.created_at, UploadPartRow.id)))


async def count_parts(session: AsyncSession, upload_id: str) -> tuple[int, int]:
    """How many parts are stored, and their bytes together."""
    total = func.coalesce(func.sum(UploadPartRow.bytes), 0)
    statement = select(func.count(), total).where(UploadPartRow.upload_id == upload_id)
    count, stored = (await session.execute(statement)).one()
    return int(count), int(stored)


async def insert_part(session: AsyncSession, row: UploadPartRow, now: int) -> bool:
    """Adds a part; False when the upload takes none any more.

    The update that changes nothing puts parts of one upload, and what ends it, one after the other.
    """
    statement = update(UploadRow).where(
        UploadRow.id == row.upload_id, UploadRow.status == UploadStatus.PENDING, UploadRow.expires_at > now
    )
    if not await session.scalar(statement.values(status=UploadStatus.PENDING.value).returning(UploadRow.id)):
        return False
    session.add(row)
    await session.flush()
    return True


async def finish(session: AsyncSession, upload_id: str, to: UploadStatus) -> bool:
    """Ends a pending upload; False when it had ended before."""
    statement = update(UploadRow).where(UploadRow.id == upload_id, UploadRow.status == UploadStatus.PENDING)
    changed = await session.scalar(statement.values(status=to.value).returning(UploadRow.id))
    return changed is not None


async def set_file(session: AsyncSession, upload_id: str, file_id: str) -> None:
    """Says which file a completed upload became."""
    await session.execute(update(UploadRow).where(UploadRow.id == upload_id).values(file_id=file_id))


async def expire_due(session: AsyncSession, expired_until: int) -> None:
    """Ends what is pending and expired at or before this time."""
    statement = update(UploadRow).where(UploadRow.status == UploadStatus.PENDING, UploadRow.expires_at <= expired_until)
    await session.execute(statement.values(status=UploadStatus.EXPIRED.value))


async def ended_with_parts(session: AsyncSession) -> list[str]:
    """Ids of uploads that have ended and still have parts."""
    statement = select(UploadPartRow.upload_id).join(UploadRow, UploadRow.id == UploadPartRow.upload_id)
    return list(await session.scalars(statement.where(UploadRow.status != UploadStatus.PENDING).distinct()))


async def delete_parts(session: AsyncSession, upload_id: str) -> None:
    """Forgets the parts of an ended upload, whose bytes are gone."""
    await session.execute(delete(UploadPartRow).where(UploadPartRow.upload_id == upload_id))


async def unowned_keys(session: AsyncSession, keys: Collection[str]) -> set[str]:
    """Those storage keys that no part points at, in any project."""
    unowned = set(keys)
    ordered = sorted(unowned)
    for start in range(0, len(ordered), 500):
        batch = ordered[start : start + 500]
        statement = select(UploadPartRow.storage_key).where(UploadPartRow.storage_key.in_(batch))
        unowned.difference_update(await session.scalars(statement))
    return unowned
