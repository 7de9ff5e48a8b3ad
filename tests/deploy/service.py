"""Owns what a Service of Kubernetes does for the tests: one address in front of several backends that come and go."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Service:
    """New connections go to a backend that takes them, in turn; `backends` are ports of loopback."""

    def __init__(self) -> None:
        self.backends: list[int] = []
        self.port = 0
        self._turns = 0
        self._working: defaultdict[int, set[asyncio.Task[None]]] = defaultdict(set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Forwards until the block ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def drained(self, backend: int) -> None:
        """Returns once no connection to it is open: that is what a pod's pause before its end is for."""
        if working := self._working[backend]:
            await asyncio.wait(working)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        for port in self._in_turn():
            self._working[port].add(task)
            try:
                theirs, ours = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            else:
                await _relay((reader, ours), (theirs, writer))
                ours.close()
                break
            finally:
                self._working[port].discard(task)
        writer.close()

    def _in_turn(self) -> list[int]:
        self._turns += 1
        first = self._turns % max(1, len(self.backends))
        return self.backends[first:] + self.backends[:first]


async def _relay(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    pumps = [asyncio.create_task(_pump(source, target)) for source, target in ways]
    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    for pump in pumps:
        pump.cancel()
    await asyncio.wait(pumps)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await source.read(65536):
            target.write(part)
            await target.drain()
