"""A streamed answer is put together as the engine would have given it whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tunesmith_inference.assembly import noting_whole, whole_answer
from tunesmith_inference.errors import engine_failed

HEAD = {"id": "chatcmpl-1", "created": 7}
USED = {"prompt_tokens": 1, "completion_tokens": 2}


def chunk(delta: dict[str, Any], reason: str | None = None, index: int = 0) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": reason}], "usage": USED}


async def noted(*chunks: dict[str, Any] | Exception, most: int = 1000) -> list[dict[str, Any]]:
    """What is noted of a stream of these."""

    async def stream() -> AsyncIterator[dict[str, Any]]:
        for each in chunks:
            if isinstance(each, Exception):
                raise each
            yield each

    answers: list[dict[str, Any]] = []
    passed = [each async for each in noting_whole(stream(), answers.append, most)]
    assert passed == list(chunks)
    return answers


async def test_texts_and_calls_are_joined() -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a"'}}
    (answer,) = await noted(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "one "}),
        chunk({"content": "other"}, index=1),
        chunk({"content": "two"}),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 1, "id": "call_2", "function": {"name": "sub"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}, "tool_calls"),
        {**HEAD, "choices": [], "usage": USED},
    )
    message = answer["choices"][0]["message"]
    assert (message["content"], answer["choices"][0]["finish_reason"], answer["usage"]) == (
        "one two",
        "tool_calls",
        USED,
    )
    assert [(each["id"], each["function"]) for each in message["tool_calls"]] == [
        ("call_1", {"name": "add", "arguments": '{"a": 1}'}),
        ("call_2", {"name": "sub", "arguments": ""}),
    ]


async def test_all_choices_make_an_answer_with_their_log_probabilities() -> None:
    async def stream() -> AsyncIterator[dict[str, Any]]:
        for index in (1, 0, 1, 0):
            each = chunk({"content": f"{index} "}, "stop", index)
            each["choices"][0]["logprobs"] = {"content": [{"token": str(index)}]}
            yield each

    answer = await whole_answer(stream())
    assert [(choice["index"], choice["message"]["content"]) for choice in answer["choices"]] == [
        (0, "0 0 "),
        (1, "1 1 "),
    ]
    assert answer["choices"][1]["logprobs"]["content"] == [{"token": "1"}] * 2
    assert (answer["object"], answer["usage"]) == ("chat.completion", USED)


async def test_an_answer_that_did_not_end_well_is_none() -> None:
    assert await noted(chunk({"content": "one"})) == []
    with pytest.raises(type(engine_failed())):
        await noted(chunk({"content": "one"}), engine_failed())


async def test_no_more_is_remembered_than_may_be_kept() -> None:
    (answer,) = await noted(*[chunk({"content": "x" * 10})] * 100, chunk({}, "stop"), most=50)
    assert 50 < len(answer["choices"][0]["message"]["content"]) <= 60
