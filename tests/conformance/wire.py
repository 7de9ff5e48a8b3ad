"""Owns a relay between clients and the server that changes no byte and remembers every exchange.

It must not know what the requests mean.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import h11

_CHUNK = 65536
_KEPT_BYTES = 1 << 20


@dataclass
class Exchange:
    """A request and its answer as they crossed the wire."""

    client: str
    method: str
    target: str
    """Path and query, still encoded."""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def is_json(self) -> bool:
        """Whether the answer says that it is JSON."""
        return self.headers.get("content-type", "").startswith("application/json")

    @property
    def json(self) -> Any:
        """The decoded answer."""
        return json.loads(self.body)


class Relay:
    """Listens on a free port inside a `with` block; `client` names whoever connects from now on."""

    def __init__(self, port: int) -> None:
        self.client = ""
        self.exchanges: list[Exchange] = []
        self.port = 0
        self._upstream = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self.client, self.exchanges.append)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        directions = (
            _pump(reader, server_writer, connection.requested),
            _pump(server_reader, writer, connection.answered),
        )
        await asyncio.gather(*directions, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, observe: Callable[[bytes], None]) -> None:
    try:
        while data := await reader.read(_CHUNK):
            observe(data)
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


class _Connection:
    """Reads along on one connection; clients here send one request after the other."""

    def __init__(self, client: str, finish: Callable[[Exchange], None]) -> None:
        self._client = client
        self._finish = finish
        self._waiting: deque[Exchange] = deque()
        self._requests = h11.Connection(h11.SERVER)
        self._answers: h11.Connection | None = None

    def requested(self, data: bytes) -> None:
        """Bytes from the client."""
        self._requests.receive_data(data)
        while (event := self._requests.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                self._waiting.append(Exchange(self._client, event.method.decode(), event.target.decode()))
        if event is h11.PAUSED:
            rest = self._requests.trailing_data[0]
            self._requests = h11.Connection(h11.SERVER)
            if rest:
                self.requested(rest)

    def answered(self, data: bytes) -> None:
        """Bytes from the server."""
        exchange = self._waiting[0]
        if self._answers is None:
            self._answers = h11.Connection(h11.CLIENT)
            request = h11.Request(method=exchange.method, target=exchange.target, headers=[("host", "x")])
            self._answers.send(request)
            self._answers.send(h11.EndOfMessage())
        self._answers.receive_data(data)
        while (event := self._answers.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Response):
                exchange.status = event.status_code
                exchange.headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data) and len(exchange.body) < _KEPT_BYTES:
                exchange.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._finish(self._waiting.popleft())
                self._answers = None
                return
