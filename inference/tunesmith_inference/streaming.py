"""Owns the relay of a streamed answer: chunk by chunk, under the client's name for the model, to a clean end.

It must not know where the chunks come from or who reads them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tunesmith_inference.errors import GatewayError, envelope

DONE = b"data: [DONE]\n\n"

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class HeldStream(StreamingResponse):
    """Server-sent events that let go of what they come from at the end, however it comes."""

    def __init__(
        self,
        events: AsyncIterator[bytes],
        held: contextlib.AsyncExitStack,
        status: int = 200,
        headers: Mapping[str, str] = _HEADERS,
    ) -> None:
        super().__init__(events, status, headers, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def relay(
    chunks: AsyncIterator[dict[str, Any]], model: str, usage_wanted: bool, meter: Callable[[dict[str, Any]], None]
) -> AsyncIterator[bytes]:
    """Server-sent events for the client.

    The engine is always asked for usage with every chunk; `meter` gets the last one, however the stream ends, and the
    client gets it at the end if it is wanted. An engine that fails on the way ends the stream with an error event and
    without `[DONE]`, which no client can take for a whole answer.
    """
    used: dict[str, Any] = {}
    try:
        async for chunk in chunks:
            used = chunk.pop("usage", None) or used
            if not chunk.get("choices"):
                if not usage_wanted:
                    continue
                chunk["usage"] = used
            yield event(public(chunk, model))
    except GatewayError as error:
        yield event(envelope(error))
        return
    finally:
        if used:
            meter(used)
    yield DONE


def public(answer: dict[str, Any], model: str) -> dict[str, Any]:
    """An answer or chunk under the client's name for the model."""
    answer["model"] = model
    return answer


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n\n"
