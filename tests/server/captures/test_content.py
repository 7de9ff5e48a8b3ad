"""What equal prompts are, and what is learnt of a capture."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.captures import ANSWER, ASKED
from tunesmith_server.captures.content import Content, decoded, encoded, prompt_sha256, training_line
from tunesmith_server.files.chat_rows import chat_row_faults

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}


def test_content_comes_back_as_it_was() -> None:
    said = Content([{"role": "user", "content": "Grüße 🙂"}], [TOOL], {"role": "assistant", "tool_calls": [CALL]})
    assert decoded(encoded(said)) == said


def test_prompts_are_equal_however_their_keys_are_ordered() -> None:
    one = Content([{"role": "user", "content": "a"}], [], ANSWER)
    other = Content([{"content": "a", "role": "user"}], [], {"role": "assistant", "content": "another"})
    assert prompt_sha256(one) == prompt_sha256(other)
    assert prompt_sha256(one) != prompt_sha256(Content(one.messages, [TOOL], ANSWER))


def test_tools_keep_the_order_in_which_the_model_was_shown_them() -> None:
    tool = {"type": "function", "function": {"parameters": {"required": ["b"], "properties": {"b": {}, "a": {}}}}}
    tool["function"] |= {"name": "add"}  # type: ignore[operator]  # it is a dict
    line = training_line(decoded(encoded(Content(ASKED, [tool], ANSWER))))
    assert line is not None
    assert json.dumps(json.loads(line)["tools"]) == json.dumps([tool])


def test_only_the_captured_answer_is_learnt() -> None:
    said = Content(
        [*ASKED, ANSWER, {"role": "user", "content": "Sure?"}], [TOOL], {"role": "assistant", "content": "Yes"}
    )
    line = training_line(said)
    assert line is not None
    row = json.loads(line)
    assert [message.get("weight") for message in row["messages"]] == [None, 0, None, None]
    assert row["tools"] == [TOOL]
    assert list(chat_row_faults(row)) == []


@pytest.mark.parametrize(
    ("messages", "answer"),
    [
        (ASKED, {"role": "assistant", "content": ""}),
        ([{"role": "tool", "content": "4", "tool_call_id": "call_unknown"}], ANSWER),
        ([{"role": "user", "content": " "}], ANSWER),
        ([{"role": "wizard", "content": "a"}], ANSWER),
    ],
)
def test_what_the_check_of_datasets_would_refuse_is_no_row(messages: list[dict[str, Any]], answer: Any) -> None:
    assert training_line(Content(messages, [], answer)) is None


def test_a_call_of_a_tool_is_an_answer() -> None:
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert training_line(Content(ASKED, [TOOL], answer)) is not None
