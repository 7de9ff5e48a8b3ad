"""Owns what an Idempotency-Key stands for: the same key with the same body means the row that it made before.

It must not know what is made. Functions work in the transaction that makes it.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import IdempotencyRow
from tunesmith_server.errors import ConflictError
from tunesmith_server.fine_tunes import repository


async def made_before(session: AsyncSession, project_id: str, key: str | None, body_hash: str) -> str | None:
    """Id of what this call made before; raises ConflictError (`idempotency_conflict`) for a key with another body."""
    known = await repository.get_idempotency(session, project_id, key) if key else None
    if known is None:
        return None
    if known.body_hash != body_hash:
        message = "This Idempotency-Key was used with another body. Use a new key for another call."
        raise ConflictError("idempotency_conflict", message)
    return known.resource_id


async def remember(
    session: AsyncSession, project_id: str, key: str | None, body_hash: str, resource_id: str, now: int
) -> None:
    """Keeps what this call makes; raises IntegrityError when another call with the key was faster."""
    if key:
        row = IdempotencyRow(
            project_id=project_id, key=key, body_hash=body_hash, resource_id=resource_id, created_at=now
        )
        await repository.insert_idempotency(session, row)
