"""Owns a real receiver of webhooks on loopback, and the service and worker that reach it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.support.factories import PRINCIPAL
from tests.support.loopback_http import Answer, LoopbackServer, Received
from tunesmith_server.core import Core
from tunesmith_server.db.tables import OutboxRow, ProjectRow
from tunesmith_server.ids import new_id
from tunesmith_server.webhooks.delivery import WebhookDelivery
from tunesmith_server.webhooks.schemas import CreateEndpoint, EndpointWithSecret
from tunesmith_server.webhooks.sender import WebhookSender
from tunesmith_server.webhooks.service import WebhooksService

SUCCEEDED: Final = "fine_tuning.job.succeeded"


@dataclass
class Receiver:
    """Keeps what it gets and answers with `statuses` in turn, the last one for ever; None hangs up."""

    server: LoopbackServer = field(init=False)
    statuses: list[int | None] = field(default_factory=lambda: [200])
    received: list[Received] = field(default_factory=list)
    url: str = ""

    def respond(self, request: Received) -> Answer | None:
        """Takes one message."""
        self.received.append(request)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return None if status is None else Answer(status)


@dataclass
class Webhooks:
    """The service and the worker over one core."""

    core: Core
    service: WebhooksService
    worker: WebhookDelivery
    receiver: Receiver

    async def endpoint(self, *event_types: str, path: str = "/hook") -> EndpointWithSecret:
        """Makes an endpoint at the receiver."""
        request = CreateEndpoint(url=self.receiver.url + path, event_types=list(event_types) or [SUCCEEDED])
        return await self.service.create(PRINCIPAL, request)

    async def news(self, event_type: str = SUCCEEDED, project_id: str = PRINCIPAL.project_id) -> str:
        """Writes what a job's end writes and returns the event's id."""
        row = OutboxRow(
            id=new_id("evt_"),
            project_id=project_id,
            type=event_type,
            subject_id="ftjob-1",
            created_at=int(self.core.clock()),
        )
        async with self.core.database.write() as session:
            session.add(row)
        return row.id

    async def deliver(self) -> None:
        """One pass of the worker, to its end."""
        await self.worker.run_once()
        await self.worker.idle()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that listens."""
    made = Receiver()
    made.server = LoopbackServer(0, made.respond)
    made.url = f"http://127.0.0.1:{made.server.port}"
    yield made
    made.server.stop()


@pytest.fixture
async def webhooks(core: Core, receiver: Receiver) -> AsyncIterator[Webhooks]:
    """Webhooks on SQLite."""
    async with _made(core, receiver) as made:
        yield made


@pytest.fixture
async def each_webhooks(each_core: Core, receiver: Receiver) -> AsyncIterator[Webhooks]:
    """Webhooks on each database in turn."""
    async with _made(each_core, receiver) as made:
        yield made


@asynccontextmanager
async def _made(core: Core, receiver: Receiver) -> AsyncIterator[Webhooks]:
    async with core.database.write() as session:
        for project in (PRINCIPAL.project_id, "other"):
            session.add(ProjectRow(id=project, created_at=int(core.clock())))
    sender = WebhookSender(allow_private=True)
    worker = WebhookDelivery(core, sender)
    try:
        yield Webhooks(core, WebhooksService(core, sender), worker, receiver)
    finally:
        await worker.stop()
