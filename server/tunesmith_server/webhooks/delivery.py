"""Owns the task that brings news to endpoints: out of the outbox, sent, tried again, given up.

It must not know how a POST is made. Each delivery is taken by a compare-and-set, so several control planes may run
this; one that dies in between leaves a delivery that is due again a minute later. Receivers may get a message twice,
with the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from prometheus_client import Counter as Metric

from tunesmith_server.core import Core
from tunesmith_server.db.tables import OutboxRow, WebhookDeliveryRow, WebhookEndpointRow
from tunesmith_server.failpoints import reach
from tunesmith_server.webhooks import repository
from tunesmith_server.webhooks.messages import event_body, retry_delay
from tunesmith_server.webhooks.sender import Answer, WebhookSender
from tunesmith_server.webhooks.service import secrets_in_force
from tunesmith_server.webhooks.signing import signed_headers

_CLAIM_SECONDS = 60.0
"""Longer than an attempt can take."""
_NEWS_PER_PASS = 100
_MAX_PER_ENDPOINT = 4
_MAX_UNDER_WAY = 128
"""More than one project's endpoints can take up, so that its slow receivers do not hold up everybody's."""

_log = logging.getLogger(__name__)
_ATTEMPTS = Metric("tunesmith_webhook_attempts_total", "Attempts to deliver a webhook.", ["outcome"])


class WebhookDelivery:
    """Sends what is due. A pass starts attempts and does not wait for slow receivers."""

    def __init__(self, core: Core, sender: WebhookSender) -> None:
        self._core = core
        self._sender = sender
        self._under_way: dict[asyncio.Task[None], str] = {}
        """Attempts, with their endpoints."""

    async def run_once(self) -> None:
        """Turns news into deliveries and starts an attempt of those that are due."""
        await self._fan_out()
        for delivery in await self._due():
            if await self._claim(delivery):
                task = asyncio.create_task(self._attempt(delivery, delivery.attempts + 1))
                self._under_way[task] = delivery.endpoint_id
                task.add_done_callback(self._ended)

    async def idle(self) -> None:
        """Returns once every attempt that was started has ended."""
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def stop(self) -> None:
        """Ends the attempts under way; they are made again once their claims have run out."""
        for task in self._under_way:
            task.cancel()
        await self.idle()
        await self._sender.close()

    async def _fan_out(self) -> None:
        async with self._core.database.read() as session:
            unheard = await repository.unheard_news(session, _NEWS_PER_PASS)
        for news in unheard:
            async with self._core.database.write() as session:
                await repository.fan_out(session, news, self._core.clock())
                reach("news.writing")
            reach("news.written")

    async def _due(self) -> list[WebhookDeliveryRow]:
        free = _MAX_UNDER_WAY - len(self._under_way)
        if free <= 0:
            return []
        busy = Counter(self._under_way.values())
        async with self._core.database.read() as session:
            due = await repository.due_deliveries(
                session,
                self._core.clock(),
                limit=free,
                limit_per_endpoint=_MAX_PER_ENDPOINT,
                but_to=[endpoint for endpoint, attempts in busy.items() if attempts >= _MAX_PER_ENDPOINT],
            )
        chosen = []
        for delivery in due:
            busy[delivery.endpoint_id] += 1
            if busy[delivery.endpoint_id] <= _MAX_PER_ENDPOINT:
                chosen.append(delivery)
        return chosen

    async def _claim(self, delivery: WebhookDeliveryRow) -> bool:
        now = self._core.clock()
        async with self._core.database.write() as session:
            return await repository.claim(session, delivery, now=now, until=now + _CLAIM_SECONDS)

    async def _attempt(self, delivery: WebhookDeliveryRow, attempt: int) -> None:
        async with self._core.database.read() as session:
            news, endpoint = await repository.message_of(session, delivery)
        if endpoint.deleted_at is None:
            outcome = self._outcome(delivery.id, attempt, await self._send(delivery, news, endpoint))
        else:
            outcome = self._end(repository.GIVEN_UP, last_error=repository.ENDPOINT_DELETED)
        reach("delivery.sent")
        async with self._core.database.write() as session:
            await repository.settle(session, delivery.id, attempt, outcome)
        reach("delivery.written")
        _ATTEMPTS.labels("failed" if outcome["state"] == repository.PENDING else outcome["state"]).inc()

    async def _send(self, delivery: WebhookDeliveryRow, news: OutboxRow, endpoint: WebhookEndpointRow) -> Answer:
        now = int(self._core.clock())
        body = event_body(news.id, news.type, news.created_at, news.subject_id)
        secrets = secrets_in_force(self._core.signer, endpoint, now)
        return await self._sender.post(endpoint.url, signed_headers(delivery.id, now, body, secrets), body)

    def _outcome(self, delivery_id: str, attempt: int, answer: Answer) -> dict[str, Any]:
        heard = {"last_status": answer.status, "last_error": answer.error}
        if answer.accepted:
            return self._end(repository.DELIVERED, **heard)
        delay = retry_delay(delivery_id, attempt)
        if delay is None:
            return self._end(repository.GIVEN_UP, **heard)
        return {"state": repository.PENDING, "not_before": self._core.clock() + delay, **heard}

    def _end(self, state: str, **heard: Any) -> dict[str, Any]:
        return {"state": state, "finished_at": int(self._core.clock()), **heard}

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        if not task.cancelled() and task.exception() is not None:
            _log.error("an attempt to deliver a webhook failed; it is made again", exc_info=task.exception())
