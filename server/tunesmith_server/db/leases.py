"""Owns named leases: temporary ownership of a name by a token, the same SQL on both databases.

It must not know what a name stands for.
"""

from __future__ import annotations

from sqlalchemy import delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import LeaseRow


async def take(session: AsyncSession, name: str, token: str, *, now: float, expires_at: float) -> bool:
    """Takes or renews a lease unless another token holds it."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    # One statement: between a look and an insert the same token could come in by another transaction.
    statement = (
        insert(LeaseRow)
        .values(name=name, token=token, expires_at=expires_at)
        .on_conflict_do_update(
            index_elements=[LeaseRow.name],
            set_={"token": token, "expires_at": expires_at},
            where=or_(LeaseRow.token == token, LeaseRow.expires_at <= now),
        )
    )
    return await session.scalar(statement.returning(LeaseRow.name)) is not None


async def holds(session: AsyncSession, name: str, token: str, now: float) -> bool:
    """Whether the lease is still this token's. Nobody else can take it before the transaction has ended."""
    mine = update(LeaseRow).where(LeaseRow.name == name, LeaseRow.token == token, LeaseRow.expires_at > now)
    return await session.scalar(mine.values(token=token).returning(LeaseRow.name)) is not None


async def release(session: AsyncSession, name: str, token: str) -> None:
    """Lets the next one take the lease at once; until then its token stays to be read."""
    await session.execute(update(LeaseRow).where(LeaseRow.name == name, LeaseRow.token == token).values(expires_at=0.0))


async def drop(session: AsyncSession, name: str, token: str) -> bool:
    """Removes the lease if `token` holds it, expired or not; False when it does not (any more)."""
    statement = delete(LeaseRow).where(LeaseRow.name == name, LeaseRow.token == token)
    return await session.scalar(statement.returning(LeaseRow.name)) is not None


async def holder(session: AsyncSession, name: str) -> str | None:
    """The token that held the lease last; None when it was dropped or never taken."""
    return await session.scalar(select(LeaseRow.token).where(LeaseRow.name == name))


async def drop_expired(session: AsyncSession, name_prefix: str, before: float) -> None:
    """Removes leases of such names that ran out before a time."""
    statement = delete(LeaseRow).where(LeaseRow.name.startswith(name_prefix, autoescape=True))
    await session.execute(statement.where(LeaseRow.expires_at < before))
