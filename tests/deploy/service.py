"""Owns what a Service of Kubernetes does for the tests: one address in front of several backends that come and go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Service:
    """New connections go to a backend that takes them, in turn; `backends` are ports of loopback."""

    def __init__(self) -> None:
        self.backends: list[int] = []
        self.port = 0
        self._turns = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Forwards until the block ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = await self._connected()
        if connection is not None:
            theirs, ours = connection
            ways = [asyncio.create_task(_pump(reader, ours)), asyncio.create_task(_pump(theirs, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            ours.close()
        writer.close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        self._turns += 1
        first = self._turns % max(1, len(self.backends))
        for port in self.backends[first:] + self.backends[:first]:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await source.read(65536):
            target.write(part)
            await target.drain()
