"""Owns the gateway as a process: settings from the environment, logs, the listening socket, the end.

It must not know what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Iterator

import uvicorn
import uvloop
from fastapi import FastAPI

from tunesmith_inference.app import serving
from tunesmith_inference.config import Settings


def main() -> None:
    """Serves until SIGTERM or SIGINT, then lets running answers end and stops the engines."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvloop.run(_serve(Settings()))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to us: uvicorn's own way ends the process by them before the engines are stopped."""
        yield


async def _serve(settings: Settings) -> None:
    async with serving(settings) as app:
        config = uvicorn.Config(
            app,
            host=settings.gateway_host,
            port=settings.gateway_port,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=settings.drain_seconds,
        )
        server = _Server(config)
        # What is there now stays. Going through it again, the collector would have every stream stand still meanwhile.
        gc.collect()
        gc.freeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _stop, server, app)
        await server.serve()


def _stop(server: uvicorn.Server, app: FastAPI) -> None:
    app.state.leave()
    server.should_exit = True


if __name__ == "__main__":
    main()
