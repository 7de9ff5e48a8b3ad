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
    chunks: AsyncIterator[dict[str, Any]],
    model: str,
    usage_wanted: bool,
    meter: Callable[[dict[str, Any]], None],
    answers: int = 1,
) -> AsyncIterator[bytes]:
    """Server-sent events for the client, of so many answers to each prompt.

    The engine is always asked for usage with every chunk; `meter` gets it once, however the stream ends, and the
    client gets it at the end if it is wanted. An engine that fails on the way ends the stream with an error event and
    without `[DONE]`, which no client can take for a whole answer.
    """
    used = _Used(answers)
    try:
        async for chunk in chunks:
            used.take(chunk)
            if not chunk.get("choices"):
                if not usage_wanted:
                    continue
                chunk["usage"] = used.total()
            elif usage_wanted:
                chunk["usage"] = None
            yield event(public(chunk, model))
    except GatewayError as error:
        yield event(envelope(error))
        return
    finally:
        if total := used.total():
            meter(total)
    yield DONE


def public(answer: dict[str, Any], model: str) -> dict[str, Any]:
    """An answer or chunk under the client's name for the model, with the details of usage that clients look into."""
    answer["model"] = model
    if usage := answer.get("usage"):
        usage["prompt_tokens_details"] = usage.get("prompt_tokens_details") or {"cached_tokens": 0}
        usage["completion_tokens_details"] = usage.get("completion_tokens_details") or {"reasoning_tokens": 0}
    return answer


class _Used:
    """What a stream has used so far. Engines tell it for each choice by itself, and for all of them at the end."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._of_choices: dict[int, dict[str, Any]] = {}
        self._of_all: dict[str, Any] = {}

    def take(self, chunk: dict[str, Any]) -> None:
        """Takes a chunk's usage out of it."""
        usage = chunk.pop("usage", None)
        if usage and chunk.get("choices"):
            self._of_choices[chunk["choices"][0].get("index", 0)] = usage
        elif usage:
            self._of_all = usage

    def total(self) -> dict[str, Any]:
        """Usage of all choices; each prompt counts once. Empty where nothing has been told."""
        if self._of_all or len(self._of_choices) < 2:
            return self._of_all or next(iter(self._of_choices.values()), {})
        prompts = {index // self._answers: usage["prompt_tokens"] for index, usage in self._of_choices.items()}
        made = sum(usage["completion_tokens"] for usage in self._of_choices.values())
        asked = sum(prompts.values())
        return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n\n"
