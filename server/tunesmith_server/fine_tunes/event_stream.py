"""Owns how a job's history looks as server-sent events.

It must not know where events come from.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing

from starlette.responses import StreamingResponse

from tunesmith_server.fine_tunes.history_schemas import EventObject

MEDIA_TYPE = "text/event-stream"

_DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"


def event_stream(
    batches: AsyncGenerator[Sequence[EventObject], None],
    encode: Callable[[EventObject], bytes],
    is_cut_off: Callable[[], bool],
) -> StreamingResponse:
    """An answer that lasts as long as the batches and ends with `[DONE]`, unless they were cut off.

    A reader that finds no `[DONE]` comes back with the id of the last event that it has.
    """

    async def lines() -> AsyncIterator[bytes]:
        # Said at once, so that proxies and clients see the head of the answer.
        yield _KEEP_ALIVE
        async with aclosing(batches):
            async for batch in batches:
                yield b"".join(encode(event) for event in batch) or _KEEP_ALIVE
        if not is_cut_off():
            yield _DONE

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(lines(), media_type=MEDIA_TYPE, headers=headers)


def with_cursor(event: EventObject) -> bytes:
    """The event under its id, which readers send back as `Last-Event-ID`, and its type."""
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()
