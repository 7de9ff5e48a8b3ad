"""Owns the SQL of webhook endpoints, of their deliveries and of reading the outbox.

It must not know how anything is sent. Every write that two processes could do at once is a compare-and-set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import OutboxRow, WebhookDeliveryRow, WebhookEndpointRow
from tunesmith_server.ids import new_id

PENDING = "pending"
SENDING = "sending"
DELIVERED = "delivered"
GIVEN_UP = "given_up"

ENDPOINT_DELETED = "The endpoint was deleted."
"""Why deliveries to it are given up."""


async def count_endpoints(session: AsyncSession, project_id: str) -> int:
    """Endpoints of the project that are not deleted."""
    query = select(func.count()).select_from(WebhookEndpointRow)
    query = query.where(WebhookEndpointRow.project_id == project_id, WebhookEndpointRow.deleted_at.is_(None))
    return int(await session.scalar(query) or 0)


async def get_endpoint(session: AsyncSession, project_id: str, endpoint_id: str) -> WebhookEndpointRow | None:
    """The project's endpoint as it is now, or None when there is none or it is deleted."""
    return await session.scalar(
        select(WebhookEndpointRow)
        .where(WebhookEndpointRow.id == endpoint_id, WebhookEndpointRow.project_id == project_id)
        .where(WebhookEndpointRow.deleted_at.is_(None))
        .execution_options(populate_existing=True)
    )


async def list_endpoints(
    session: AsyncSession, project_id: str, *, after: WebhookEndpointRow | None, limit: int
) -> list[WebhookEndpointRow]:
    """The project's endpoints, newest first."""
    query = select(WebhookEndpointRow)
    query = query.where(WebhookEndpointRow.project_id == project_id, WebhookEndpointRow.deleted_at.is_(None))
    place = tuple_(WebhookEndpointRow.position, WebhookEndpointRow.id)
    if after is not None:
        query = query.where(place < (after.position, after.id))
    query = query.order_by(WebhookEndpointRow.position.desc(), WebhookEndpointRow.id.desc())
    return list(await session.scalars(query.limit(limit)))


async def change_endpoint(session: AsyncSession, endpoint: WebhookEndpointRow, changes: Mapping[str, Any]) -> bool:
    """Writes the changes unless the endpoint was deleted or its secret rotated since it was read."""
    written = await session.scalar(
        update(WebhookEndpointRow)
        .where(WebhookEndpointRow.id == endpoint.id, WebhookEndpointRow.deleted_at.is_(None))
        .where(WebhookEndpointRow.secret_version == endpoint.secret_version)
        .values(**changes)
        .returning(WebhookEndpointRow.id)
        .execution_options(synchronize_session=False)
    )
    return written is not None


async def give_up_all(session: AsyncSession, endpoint_id: str, now: int) -> None:
    """Ends every delivery to a deleted endpoint that is not being sent at this moment."""
    await session.execute(
        update(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.endpoint_id == endpoint_id, WebhookDeliveryRow.state == PENDING)
        .values(state=GIVEN_UP, last_error=ENDPOINT_DELETED, finished_at=now)
        .execution_options(synchronize_session=False)
    )


async def fan_out(session: AsyncSession, news: OutboxRow, now: float) -> int:
    """Writes one delivery for each endpoint that asked for the news; 0 also when another process was faster."""
    taken = await session.scalar(
        update(OutboxRow)
        .where(OutboxRow.id == news.id, OutboxRow.fanned_out_at.is_(None))
        .values(fanned_out_at=int(now))
        .returning(OutboxRow.id)
        .execution_options(synchronize_session=False)
    )
    if taken is None:
        return 0
    endpoints = await session.scalars(
        select(WebhookEndpointRow)
        .where(WebhookEndpointRow.project_id == news.project_id, WebhookEndpointRow.deleted_at.is_(None))
        .order_by(WebhookEndpointRow.position)
    )
    deliveries = [
        WebhookDeliveryRow(
            id=new_id("wh_"),
            outbox_id=news.id,
            endpoint_id=endpoint.id,
            state=PENDING,
            attempts=0,
            not_before=now,
            created_at=int(now),
        )
        for endpoint in endpoints
        if news.type in endpoint.event_types
    ]
    session.add_all(deliveries)
    await session.flush()
    return len(deliveries)


async def unheard_news(session: AsyncSession, limit: int) -> list[OutboxRow]:
    """News whose deliveries are not written yet, oldest first."""
    query = select(OutboxRow).where(OutboxRow.fanned_out_at.is_(None)).order_by(OutboxRow.position).limit(limit)
    return list(await session.scalars(query))


async def due_deliveries(
    session: AsyncSession, now: float, *, limit: int, limit_per_endpoint: int, but_to: Collection[str]
) -> list[WebhookDeliveryRow]:
    """Deliveries whose time has come, oldest first: only a few to each endpoint, and none to those in `but_to`."""
    turn = func.row_number().over(
        partition_by=WebhookDeliveryRow.endpoint_id, order_by=(WebhookDeliveryRow.not_before, WebhookDeliveryRow.id)
    )
    due = (
        select(WebhookDeliveryRow.id, turn.label("turn"))
        .where(WebhookDeliveryRow.state.in_((PENDING, SENDING)), WebhookDeliveryRow.not_before <= now)
        .where(WebhookDeliveryRow.endpoint_id.not_in(but_to))
        .subquery()
    )
    query = (
        select(WebhookDeliveryRow)
        .join(due, due.c.id == WebhookDeliveryRow.id)
        .where(due.c.turn <= limit_per_endpoint)
        .order_by(WebhookDeliveryRow.not_before, WebhookDeliveryRow.id)
    )
    return list(await session.scalars(query.limit(limit)))


async def claim(session: AsyncSession, seen: WebhookDeliveryRow, *, now: float, until: float) -> bool:
    """Takes a delivery that was seen to be due, until the given time; False when another process was faster."""
    written = await session.scalar(
        update(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.id == seen.id, WebhookDeliveryRow.attempts == seen.attempts)
        .where(WebhookDeliveryRow.state.in_((PENDING, SENDING)), WebhookDeliveryRow.not_before <= now)
        .values(state=SENDING, attempts=seen.attempts + 1, not_before=until)
        .returning(WebhookDeliveryRow.id)
        .execution_options(synchronize_session=False)
    )
    return written is not None


async def settle(session: AsyncSession, delivery_id: str, attempt: int, values: Mapping[str, Any]) -> bool:
    """Writes what became of an attempt; False when a later one has begun."""
    written = await session.scalar(
        update(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.id == delivery_id, WebhookDeliveryRow.attempts == attempt)
        .where(WebhookDeliveryRow.state == SENDING)
        .values(**values)
        .returning(WebhookDeliveryRow.id)
        .execution_options(synchronize_session=False)
    )
    return written is not None


async def reopen(session: AsyncSession, delivery_id: str, now: float) -> bool:
    """Makes a delivery due at once with all its attempts before it; False while it is being sent."""
    written = await session.scalar(
        update(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.id == delivery_id, WebhookDeliveryRow.state != SENDING)
        .values(state=PENDING, attempts=0, not_before=now, finished_at=None)
        .returning(WebhookDeliveryRow.id)
        .execution_options(synchronize_session=False)
    )
    return written is not None


async def message_of(session: AsyncSession, delivery: WebhookDeliveryRow) -> tuple[OutboxRow, WebhookEndpointRow]:
    """What a delivery tells and to whom, deleted endpoints too."""
    query = (
        select(OutboxRow, WebhookEndpointRow)
        .select_from(WebhookDeliveryRow)
        .join(OutboxRow, OutboxRow.id == WebhookDeliveryRow.outbox_id)
        .join(WebhookEndpointRow, WebhookEndpointRow.id == WebhookDeliveryRow.endpoint_id)
        .where(WebhookDeliveryRow.id == delivery.id)
    )
    news, endpoint = (await session.execute(query)).one()
    return news, endpoint


async def get_delivery(
    session: AsyncSession, endpoint_id: str, delivery_id: str
) -> tuple[WebhookDeliveryRow, OutboxRow] | None:
    """One delivery to this endpoint with what it tells, or None."""
    query = (
        select(WebhookDeliveryRow, OutboxRow)
        .join(OutboxRow, OutboxRow.id == WebhookDeliveryRow.outbox_id)
        .where(WebhookDeliveryRow.id == delivery_id, WebhookDeliveryRow.endpoint_id == endpoint_id)
        .execution_options(populate_existing=True)
    )
    found = (await session.execute(query)).one_or_none()
    return None if found is None else (found[0], found[1])


async def list_deliveries(
    session: AsyncSession, endpoint_id: str, *, after: WebhookDeliveryRow | None, limit: int
) -> list[tuple[WebhookDeliveryRow, OutboxRow]]:
    """Deliveries to the endpoint with what they tell, newest first."""
    query = (
        select(WebhookDeliveryRow, OutboxRow)
        .join(OutboxRow, OutboxRow.id == WebhookDeliveryRow.outbox_id)
        .where(WebhookDeliveryRow.endpoint_id == endpoint_id)
        .order_by(WebhookDeliveryRow.position.desc(), WebhookDeliveryRow.id.desc())
    )
    if after is not None:
        place = tuple_(WebhookDeliveryRow.position, WebhookDeliveryRow.id)
        query = query.where(place < (after.position, after.id))
    return [(row[0], row[1]) for row in await session.execute(query.limit(limit))]
