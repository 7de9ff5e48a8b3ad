"""News is kept for a month, and longer while somebody has still to hear it."""

from __future__ import annotations

from sqlalchemy import func, select

from tests.server.webhooks.conftest import Webhooks
from tests.support.clock import MovableClock
from tunesmith_server.db.tables import OutboxRow, WebhookDeliveryRow
from tunesmith_server.webhooks.sweep import NewsSweep

MONTH = 30 * 24 * 3600


async def test_what_was_heard_a_month_ago_is_forgotten(each_webhooks: Webhooks, clock: MovableClock) -> None:
    await each_webhooks.endpoint()
    await each_webhooks.news()
    await each_webhooks.deliver()
    sweep = NewsSweep(each_webhooks.core)
    clock.advance(MONTH)
    await each_webhooks.news()

    await sweep.run_once()
    assert await kept(each_webhooks) == (2, 1), "a month is not over yet"

    clock.advance(1)
    await sweep.run_once()
    assert await kept(each_webhooks) == (1, 0)

    clock.advance(MONTH)
    await sweep.run_once()
    assert await kept(each_webhooks) == (1, 0), "nobody was told of it"


async def kept(webhooks: Webhooks) -> tuple[int, int]:
    """Rows of news and of deliveries."""
    async with webhooks.core.database.read() as session:
        news = await session.scalar(select(func.count()).select_from(OutboxRow))
        deliveries = await session.scalar(select(func.count()).select_from(WebhookDeliveryRow))
    return news or 0, deliveries or 0
