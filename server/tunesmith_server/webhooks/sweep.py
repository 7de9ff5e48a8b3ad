"""Owns the end of news: what was delivered or given up a month ago is forgotten.

It must not know how news is sent. Several control planes may sweep at once; every step can be repeated.
"""

from __future__ import annotations

from sqlalchemy import delete, select

from tunesmith_server.core import Core
from tunesmith_server.db.tables import OutboxRow, WebhookDeliveryRow
from tunesmith_server.webhooks.repository import PENDING, SENDING

SWEEP_SECONDS = 3600.0

_KEPT_SECONDS = 30 * 24 * 3600


class NewsSweep:
    """One pass at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def run_once(self) -> None:
        """Removes old deliveries that have ended, then the news that no delivery needs any more."""
        before = int(self._core.clock()) - _KEPT_SECONDS
        open_states = (PENDING, SENDING)
        needed = select(WebhookDeliveryRow.id).where(WebhookDeliveryRow.outbox_id == OutboxRow.id).exists()
        async with self._core.database.write() as session:
            await session.execute(
                delete(WebhookDeliveryRow)
                .where(WebhookDeliveryRow.created_at < before, WebhookDeliveryRow.state.not_in(open_states))
                .execution_options(synchronize_session=False)
            )
            await session.execute(
                delete(OutboxRow)
                .where(OutboxRow.created_at < before, OutboxRow.fanned_out_at.is_not(None), ~needed)
                .execution_options(synchronize_session=False)
            )
