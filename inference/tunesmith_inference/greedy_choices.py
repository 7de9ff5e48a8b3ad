"""Owns several greedy answers to one prompt: they are all the same, so one is made and given several times.

It must not know HTTP or engines; everything here is pure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any


def asked_once(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """The body that asks for one greedy answer in the place of several, and how often it is to be given.

    Engines refuse the others; OpenAI answers them.
    """
    copies = body.get("n", 1)
    if copies == 1 or body.get("temperature") != 0:
        return body, 1
    return {**body, "n": 1}, copies


def repeated(answer: dict[str, Any], copies: int) -> dict[str, Any]:
    """A whole answer with each choice so many times. Usage stays what was computed."""
    if copies == 1:
        return answer
    return {**answer, "choices": [each for choice in answer["choices"] for each in _copied(choice, copies)]}


async def repeated_chunks(chunks: AsyncIterator[dict[str, Any]], copies: int) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream, each as often as there are copies and with one choice, as OpenAI sends them.

    Only the first copy says what has been used.
    """
    async for chunk in chunks:
        choices = chunk.get("choices")
        if copies == 1 or not choices:
            yield chunk
            continue
        for choice in choices:
            for each in _copied(choice, copies):
                yield {**chunk, "choices": [each]}
                chunk.pop("usage", None)


def _copied(choice: dict[str, Any], copies: int) -> Iterator[dict[str, Any]]:
    """Answers to one prompt stand together, in the order of the prompts."""
    return ({**choice, "index": choice["index"] * copies + copy} for copy in range(copies))
