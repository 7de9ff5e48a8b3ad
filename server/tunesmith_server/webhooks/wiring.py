"""Owns the parts behind webhooks, built together: routes, servicer and the tasks that deliver and forget.

It must not know other domains; application.py puts this beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio
from fastapi import APIRouter

from tunesmith_proto.webhooks.v1 import webhooks_pb2_grpc
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.repeat import repeat
from tunesmith_server.webhooks import endpoints
from tunesmith_server.webhooks.delivery import WebhookDelivery
from tunesmith_server.webhooks.sender import WebhookSender
from tunesmith_server.webhooks.service import WebhooksService
from tunesmith_server.webhooks.servicer import WebhooksServicer
from tunesmith_server.webhooks.sweep import SWEEP_SECONDS, NewsSweep

_DELIVER_SECONDS = 1.0


class WebhooksPart:
    """Everything about webhooks that the application runs."""

    def __init__(self, core: Core) -> None:
        sender = WebhookSender(allow_private=core.settings.webhook_allow_private)
        self._service = WebhooksService(core, sender)
        self._delivery = WebhookDelivery(core, sender)
        self._sweep = NewsSweep(core)
        self._tasks: list[asyncio.Task[None]] = []

    def routers(self) -> list[APIRouter]:
        """The REST routes."""
        return [endpoints.create_router(self._service)]

    def grpc_services(self, authenticator: Authenticator) -> dict[str, Callable[[grpc.aio.Server], None]]:
        """What adds the gRPC service to a server, by its full name."""
        servicer = WebhooksServicer(self._service, authenticator)
        return {
            "tunesmith.webhooks.v1.WebhooksService": lambda server: (
                webhooks_pb2_grpc.add_WebhooksServiceServicer_to_server(servicer, server)
            )
        }

    def start(self) -> None:
        """Begins to deliver; call it once, in the running event loop."""
        self._tasks = [
            asyncio.create_task(repeat(self._delivery.run_once, _DELIVER_SECONDS)),
            asyncio.create_task(repeat(self._sweep.run_once, SWEEP_SECONDS)),
        ]

    async def stop(self) -> None:
        """Ends the tasks and the attempts under way; the next start makes them again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._delivery.stop()
