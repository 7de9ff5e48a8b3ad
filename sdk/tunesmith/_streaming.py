"""Owns the decoding of server-sent events, and the streams of typed chunks that users iterate.
Must not know HTTP: bytes come in, chunks go out.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from pydantic import BaseModel, ValidationError

from tunesmith._blocking import iterate_blocking, run_blocking
from tunesmith._errors import APIConnectionError, UnexpectedResponseError, stream_error

ChunkT = TypeVar("ChunkT", bound=BaseModel)

_END_OF_STREAM = "[DONE]"


class ByteStream(Protocol):
    """The body of an answer that is still arriving."""

    request_id: str | None

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they arrive, cut anywhere."""
        ...

    async def close(self) -> None:
        """Give the connection back; may be called twice."""
        ...


class AsyncStream(Generic[ChunkT]):
    """Typed chunks of one answer; iterate it once, or use it as a context manager to stop early."""

    def __init__(self, body: ByteStream, shape: type[ChunkT]) -> None:
        self._body = body
        self._chunks = _chunks(body, shape)

    def __aiter__(self) -> AsyncIterator[ChunkT]:
        return self._chunks

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the answer; the server stops generating."""
        await self._body.close()


class Stream(Generic[ChunkT]):
    """Typed chunks of one answer; iterate it once, or use it as a context manager to stop early."""

    def __init__(self, twin: AsyncStream[ChunkT]) -> None:
        self._twin = twin

    def __iter__(self) -> Iterator[ChunkT]:
        return iterate_blocking(aiter(self._twin))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the answer; the server stops generating."""
        run_blocking(self._twin.close())


@dataclass(frozen=True)
class ServerSentEvent:
    """One dispatched event; `data` joins several data lines with line feeds."""

    event: str
    data: str


class EventDecoder:
    """Turns bytes, cut anywhere, into events by the rules of the HTML standard."""

    def __init__(self) -> None:
        self._pending = b""
        self._ended_with_carriage_return = False
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that these bytes complete."""
        if self._ended_with_carriage_return and chunk:
            # CR LF is one line end even when the two bytes come in different chunks.
            chunk = chunk.removeprefix(b"\n")
            self._ended_with_carriage_return = False
        self._ended_with_carriage_return = self._ended_with_carriage_return or chunk.endswith(b"\r")
        # Only CR, LF and CR LF end a line: str.splitlines would also cut at U+2028 inside a JSON string.
        *lines, self._pending = (self._pending + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            event = self._take_line(line.decode("utf-8", errors="replace"))
            if event is not None:
                yield event

    def _take_line(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.removeprefix("\ufeff").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        event = ServerSentEvent(self._event or "message", "\n".join(self._data)) if self._data else None
        self._event, self._data = "", []
        return event


async def _chunks(body: ByteStream, shape: type[ChunkT]) -> AsyncIterator[ChunkT]:
    decoder = EventDecoder()
    try:
        async for received in body:
            for event in decoder.feed(received):
                if event.data == _END_OF_STREAM:
                    return
                yield _chunk_of(event, shape, body.request_id)
    finally:
        await body.close()
    # An answer that stops without its end mark is cut off; to return quietly would pass it off as whole.
    raise APIConnectionError(
        "The stream broke off before it was complete; send the request again.", code="connection_broken"
    )


def _chunk_of(event: ServerSentEvent, shape: type[ChunkT], request_id: str | None) -> ChunkT:
    try:
        decoded = json.loads(event.data)
        error = decoded.get("error") if isinstance(decoded, dict) else None
        if error is None and event.event != "error":
            return shape.model_validate(decoded)
    except (ValueError, ValidationError) as cause:
        raise UnexpectedResponseError(
            "The stream holds something that is not a chunk of an answer.",
            code="unexpected_response",
            request_id=request_id,
        ) from cause
    raise stream_error(error if isinstance(error, dict) else {"message": error or decoded}, request_id)
