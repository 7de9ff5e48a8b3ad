"""Owns how the chunks of a streamed chat completion are put together to the whole answer that they make.

It must not know where the chunks come from or what becomes of the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any


async def noting_whole(
    chunks: AsyncIterator[dict[str, Any]], note: Callable[[dict[str, Any]], None], most: int
) -> AsyncIterator[dict[str, Any]]:
    """The same chunks as they come; `note` gets the first choice's whole answer once they have ended well.

    Of an answer with more than `most` characters only the beginning is remembered, and `note` gets more than `most`.
    """
    whole = _Whole(most)
    async for chunk in chunks:
        whole.take(chunk)
        yield chunk
    answer = whole.answer()
    if answer is not None:
        note(answer)


class _Whole:
    """One answer, as far as it has come."""

    def __init__(self, most: int) -> None:
        self._room = most
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._content: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._arguments: dict[int, list[str]] = {}
        self._reason: str | None = None

    def take(self, chunk: Mapping[str, Any]) -> None:
        self._head = self._head or {"id": chunk["id"], "created": chunk["created"]}
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices", ()):
            if choice["index"] == 0:
                self._reason = choice.get("finish_reason") or self._reason
                self._add(choice["delta"])

    def answer(self) -> dict[str, Any] | None:
        """None where the stream ended without a reason."""
        if self._reason is None:
            return None
        message: dict[str, Any] = {"content": "".join(self._content) or None}
        for index, call in self._calls.items():
            call["function"]["arguments"] = "".join(self._arguments[index])
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        choice = {"index": 0, "message": message, "finish_reason": self._reason}
        return {**self._head, "choices": [choice], "usage": self._usage}

    def _add(self, delta: Mapping[str, Any]) -> None:
        if self._room < 0:
            return
        said = delta.get("content") or ""
        self._content.append(said)
        self._room -= len(said)
        for part in delta.get("tool_calls") or ():
            self._add_call(part)

    def _add_call(self, part: Mapping[str, Any]) -> None:
        function, index = part.get("function") or {}, part["index"]
        if index not in self._calls:
            named = {"name": function.get("name") or "", "arguments": ""}
            self._calls[index] = {"id": part.get("id") or "", "type": "function", "function": named}
            self._arguments[index] = []
        arguments = function.get("arguments") or ""
        self._arguments[index].append(arguments)
        self._room -= len(arguments)
