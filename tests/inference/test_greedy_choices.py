"""Several greedy answers: asked for once, given several times."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tunesmith_inference.greedy_choices import asked_once, repeated, repeated_chunks


@pytest.mark.parametrize(
    "body", [{}, {"temperature": 0}, {"n": 1, "temperature": 0}, {"n": 3}, {"n": 3, "temperature": 0.1}]
)
def test_what_engines_take_stays_as_it_is(body: dict[str, Any]) -> None:
    assert asked_once(body) == (body, 1)


def test_several_greedy_answers_are_asked_for_once() -> None:
    assert asked_once({"n": 3, "temperature": 0, "prompt": "a"}) == ({"n": 1, "temperature": 0, "prompt": "a"}, 3)


def test_each_prompts_answers_stand_together() -> None:
    answer = {"id": "cmpl-1", "choices": [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}], "usage": {"x": 1}}
    assert repeated(answer, 1) == answer
    told = repeated(answer, 2)
    assert [(choice["index"], choice["text"]) for choice in told["choices"]] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert (told["id"], told["usage"]) == ("cmpl-1", {"x": 1})


async def test_chunks_have_one_choice_each_and_usage_comes_once() -> None:
    async def chunks() -> AsyncIterator[dict[str, Any]]:
        yield {"id": "c", "choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"completion_tokens": 1}}
        yield {"id": "c", "choices": [], "usage": {"completion_tokens": 1}}

    seen = [chunk async for chunk in repeated_chunks(chunks(), 2)]
    assert [[choice["index"] for choice in chunk["choices"]] for chunk in seen] == [[0], [1], []]
    assert ["usage" in chunk for chunk in seen] == [True, False, True]
    assert [chunk async for chunk in repeated_chunks(chunks(), 1)] == [seen[0], seen[2]]
