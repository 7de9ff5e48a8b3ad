"""Owns ASGI apps on a real socket of loopback, served by uvicorn on the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(app: ASGIApp, port: int = 0, certificate: Path | None = None) -> AsyncIterator[str]:
    """Serves the app and gives its base URL; with a file of key and certificates, over TLS."""
    config = uvicorn.Config(app, host="127.0.0.1", port=port, lifespan="off", log_config=None, ssl_certfile=certificate)
    config.timeout_graceful_shutdown = 1
    server = _Server(config)
    task = asyncio.ensure_future(server.serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
                await asyncio.sleep(0.01)
        bound = server.servers[0].sockets[0].getsockname()[1]
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{bound}"
    finally:
        server.should_exit = True
        await task
