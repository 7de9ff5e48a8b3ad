"""Owns how the chunks of a streamed chat completion are put together to the whole answer that they make.

It must not know where the chunks come from or what becomes of the answer.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from tunesmith_inference.errors import engine_failed

_HEAD = ("id", "created", "model")


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


async def whole_answer(chunks: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """The answer that all chunks make, as if it had not been streamed; raises GatewayError where they end too early."""
    whole = _Whole(math.inf)
    async for chunk in chunks:
        whole.take(chunk)
    answer = whole.answer()
    if answer is None:
        raise engine_failed()
    return answer


class _Whole:
    """One answer, as far as it has come: all of it, or of at most so many characters the first choice's message."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}

    def take(self, chunk: Mapping[str, Any]) -> None:
        self._head = self._head or {name: chunk[name] for name in _HEAD if name in chunk}
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices", ()):
            if choice["index"] == 0 or self._most == math.inf:
                self._choices.setdefault(choice["index"], _Choice(self._most)).take(choice)

    def answer(self) -> dict[str, Any] | None:
        """None where the stream ended without a reason."""
        if not self._choices or not all(choice.reason for choice in self._choices.values()):
            return None
        choices = [self._choices[index].told(index) for index in sorted(self._choices)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage}


class _Choice:
    """One choice of an answer, as far as it has come."""

    def __init__(self, most: float) -> None:
        self.reason: str | None = None
        self._room = most
        self._content: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._arguments: dict[int, list[str]] = {}
        self._logprobs: list[dict[str, Any]] = []

    def take(self, choice: Mapping[str, Any]) -> None:
        self.reason = choice.get("finish_reason") or self.reason
        if self._room < 0:
            return
        if choice.get("logprobs") and self._room == math.inf:
            self._logprobs += choice["logprobs"]["content"]
        delta = choice["delta"]
        said = delta.get("content") or ""
        self._content.append(said)
        self._room -= len(said)
        for part in delta.get("tool_calls") or ():
            self._add_call(part)

    def told(self, index: int) -> dict[str, Any]:
        """The choice of a whole answer."""
        said = "".join(self._content)
        content = None if self._calls and not said else said
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        for place, call in self._calls.items():
            call["function"]["arguments"] = "".join(self._arguments[place])
        if self._calls:
            message["tool_calls"] = [self._calls[place] for place in sorted(self._calls)]
        logprobs = {"content": self._logprobs, "refusal": None} if self._logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": self.reason}

    def _add_call(self, part: Mapping[str, Any]) -> None:
        function, index = part.get("function") or {}, part["index"]
        if index not in self._calls:
            named = {"name": function.get("name") or "", "arguments": ""}
            self._calls[index] = {"id": part.get("id") or "", "type": "function", "function": named}
            self._arguments[index] = []
        arguments = function.get("arguments") or ""
        self._arguments[index].append(arguments)
        self._room -= len(arguments)
