"""Owns a streamed answer in the form of the Responses API: the typed events that chunks of a chat completion make.

It must not know where the chunks come from or who reads the events.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from tunesmith_inference import responses
from tunesmith_inference.errors import GatewayError, envelope


async def response_events(
    chunks: AsyncIterator[dict[str, Any]], response: Mapping[str, Any], meter: Callable[[dict[str, Any]], None]
) -> AsyncIterator[bytes]:
    """Server-sent events for the client of a response that was `begun`.

    `meter` gets the last usage that the engine told, however the stream ends. An engine that fails on the way ends it
    with `response.failed` and `error`, which the official client raises.
    """
    answer, used = _Answer(response), dict[str, Any]()
    try:
        yield b"".join(answer.begin())
        async for chunk in chunks:
            used = chunk.get("usage") or used
            events = b"".join(answer.take(chunk))
            if events:
                yield events
        yield b"".join(answer.end(used))
    except GatewayError as error:
        yield b"".join(answer.fail(responses.in_its_words(error)))
    finally:
        if used:
            meter(used)


def error_event(error: GatewayError, number: int) -> bytes:
    """The event, so many after the first one, that ends a response of which nothing more is known."""
    return _event("error", number, **_told(error))


class _Answer:
    """What has been told of one response."""

    def __init__(self, response: Mapping[str, Any]) -> None:
        self._response = response
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        """The item under way: its text or arguments grow until the next one begins."""
        self._call: int | None = None
        self._reason: str | None = None

    def begin(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)

    def take(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        """The events of one chunk, which has one choice or none."""
        for choice in chunk.get("choices", ()):
            self._reason = choice.get("finish_reason") or self._reason
            delta = choice["delta"]
            if delta.get("content"):
                yield from self._said(delta["content"])
            for call in delta.get("tool_calls") or ():
                yield from self._called(call)

    def end(self, usage: Mapping[str, Any]) -> Iterator[bytes]:
        if not self._output:
            yield from self._open_message()
        whole = responses.ended(self._response, self._output, self._reason, usage)
        self._output = whole["output"]
        yield from self._close()
        yield self._event(f"response.{whole['status']}", response=whole)

    def fail(self, error: GatewayError) -> Iterator[bytes]:
        yield self._event("response.failed", response=responses.failed(self._response, self._output, error))
        yield self._event("error", **_told(error))

    def _said(self, text: str) -> Iterator[bytes]:
        if self._open is None or self._open["type"] != "message":
            yield from self._close()
            yield from self._open_message()
        self._output[-1]["content"][0]["text"] += text
        yield self._of_item("response.output_text.delta", content_index=0, delta=text, logprobs=[])

    def _called(self, call: Mapping[str, Any]) -> Iterator[bytes]:
        function = call.get("function") or {}
        if self._call != call["index"]:
            yield from self._close()
            self._call = call["index"]
            named = {"name": function.get("name") or "", "arguments": ""}
            yield from self._begin(responses.call_item(self._response, len(self._output), call.get("id") or "", named))
        arguments = function.get("arguments")
        if arguments:
            self._output[-1]["arguments"] += arguments
            yield self._of_item("response.function_call_arguments.delta", delta=arguments)

    def _open_message(self) -> Iterator[bytes]:
        yield from self._begin({**responses.message_item(self._response, len(self._output), ""), "content": []})
        part = responses.text_part("")
        yield self._of_item("response.content_part.added", content_index=0, part=part)
        self._output[-1]["content"].append(part)

    def _begin(self, item: dict[str, Any]) -> Iterator[bytes]:
        self._open = item
        self._output.append(item)
        begun = {**item, "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=begun)

    def _close(self) -> Iterator[bytes]:
        if self._open is None:
            return
        item = self._output[-1]
        if item["type"] == "message":
            (part,) = item["content"]
            yield self._of_item("response.output_text.done", content_index=0, text=part["text"], logprobs=[])
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield self._of_item("response.function_call_arguments.done", **told)
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)
        self._open = None

    def _of_item(self, kind: str, **content: Any) -> bytes:
        """An event of the item under way."""
        return self._event(kind, item_id=self._output[-1]["id"], output_index=len(self._output) - 1, **content)

    def _event(self, kind: str, **content: Any) -> bytes:
        self._number += 1
        return _event(kind, self._number - 1, **content)


def _told(error: GatewayError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "param": error.param, "error": envelope(error)["error"]}


def _event(kind: str, number: int, **content: Any) -> bytes:
    told = json.dumps({"type": kind, "sequence_number": number, **content}, separators=(",", ":"))
    return f"event: {kind}\ndata: {told}\n\n".encode("ascii")
