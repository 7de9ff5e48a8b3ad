"""The parts together: what waits is sent as soon as the server has started."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.server.webhooks.conftest import Webhooks
from tests.support.core import open_core
from tests.support.loopback_http import Answer, Received
from tunesmith_server.webhooks.wiring import WebhooksPart


async def test_what_waited_for_a_start_is_sent(webhooks: Webhooks, tmp_path: Path) -> None:
    loop, taken = asyncio.get_running_loop(), asyncio.Event()

    def respond(request: Received) -> Answer:
        loop.call_soon_threadsafe(taken.set)
        return Answer(200)

    webhooks.receiver.server.respond = respond
    await webhooks.endpoint()
    await webhooks.news()

    async with open_core(tmp_path / "home", webhook_allow_private=True) as core:
        part = WebhooksPart(core)
        part.start()
        async with asyncio.timeout(10):
            await taken.wait()
        await part.stop()
