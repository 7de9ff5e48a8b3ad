"""Owns the load: many streamed chats at once over bare connections, each timed at the client.

It must not know who answers. A client library would take more of the machine than what is measured.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

_FIRST = b"data: {"
_DONE = b"data: [DONE]"
_LIMIT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Place:
    """Where to ask: a port of loopback, a key, the model's name there, and a unix socket where there is no port."""

    name: str
    port: int
    key: str
    model: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one stream: until its first token and until its end."""

    first: float
    whole: float


@dataclass(frozen=True, slots=True)
class Load:
    """So many streams at once, so many in all, of `tokens` tokens; `prompt` tells the simulator how fast they come."""

    streams: int
    total: int
    tokens: int
    prompt: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The streams of one load, and the seconds that all of them took."""

    timings: Sequence[Timing]
    seconds: float

    def percentile(self, share: float, what: str) -> float:
        """Milliseconds, `first` or `whole`, below which `share` of the streams stayed."""
        ordered = sorted(getattr(timing, what) for timing in self.timings)
        return float(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))])


async def run(place: Place, load: Load) -> Outcome:
    """Puts the load on a place. Any answer but a whole stream ends the benchmark."""
    request = _request(place, load)
    left = iter(range(load.total))
    timings: list[Timing] = []

    async def client(number: int) -> None:
        # Clients do not all begin in the same instant, as they never do.
        await asyncio.sleep(number / load.streams * 0.5)
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port, limit=1 << 20)
        timings.extend([await _stream(reader, writer, request) for _ in left])
        writer.close()

    started = time.perf_counter()
    async with asyncio.timeout(_LIMIT_SECONDS):
        await asyncio.gather(*(client(number) for number in range(load.streams)))
    return Outcome(timings, time.perf_counter() - started)


def _request(place: Place, load: Load) -> bytes:
    body = json.dumps(
        {
            "model": place.model,
            "messages": [{"role": "user", "content": load.prompt}],
            "max_tokens": load.tokens,
            "stream": True,
        }
    )
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {place.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Timing:
    started = time.perf_counter()
    writer.write(request)
    seen, first = b"", 0.0
    while not seen.endswith(b"0\r\n\r\n"):
        part = await reader.read(1 << 16)
        if not part:
            raise RuntimeError(f"the stream ended early after {seen[-300:]!r}")
        seen = seen[-400:] + part if first else seen + part
        if not first and _FIRST in seen:
            first = time.perf_counter() - started
        if not first and b"\r\n\r\n" in seen and not seen.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"no stream but {seen[:300]!r}")
    if _DONE not in seen:
        raise RuntimeError(f"the stream has no end: {seen[-300:]!r}")
    return Timing(first, time.perf_counter() - started)
