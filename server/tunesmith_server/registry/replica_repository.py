"""Owns the SQL of what gateways report: one row each, until they have been silent for some time.

It must not know what is in a report; each function works in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import GatewayRow


async def heard_since(session: AsyncSession, after: float) -> list[GatewayRow]:
    """The gateways that were heard after that moment, by id."""
    query = select(GatewayRow).where(GatewayRow.heard_at > after)
    return list(await session.scalars(query.order_by(GatewayRow.id)))


async def record(session: AsyncSession, row: GatewayRow) -> None:
    """Puts a report in the place of the gateway's last one."""
    await session.merge(row)


async def forget(session: AsyncSession, ids: Collection[str], silent_since: float) -> None:
    """Removes these gateways, and those that were not heard after that moment."""
    await session.execute(delete(GatewayRow).where(GatewayRow.id.in_(ids) | (GatewayRow.heard_at <= silent_since)))
