"""Rows: what is read, what is refused with its line number, and the order in which they are seen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.files.test_dataset_check import GOOD_ROWS
from tunesmith_trainer.data import (
    MAX_MESSAGES,
    Message,
    Row,
    RowKind,
    count_lines,
    held_out_indices,
    indices_of_step,
    read_rows,
    steps_per_pass,
)
from tunesmith_trainer.errors import Problem

USER = {"role": "user", "content": "a"}
TOOL = {"type": "function", "function": {"name": "f"}}


def read(path: Path) -> tuple[list[Row], list[Problem]]:
    read = list(read_rows(path, "training_file"))
    return [one for one in read if isinstance(one, Row)], [one for one in read if isinstance(one, Problem)]


def test_chat_and_prompt_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    chat = {
        "messages": [USER | {"weight": None}, {"role": "assistant", "content": "b", "weight": 0, "name": "n"}],
        "tools": [TOOL],
    }
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(chat).encode() + b'\r\n\n{"prompt": "p", "completion": "c"}\n')
    rows, problems = read(path)

    assert problems == []
    assert count_lines(path) == 4
    assert [row.number for row in rows] == [1, 3]
    assert rows[0].tools == [TOOL]
    assert rows[0].messages[1].weight == 0
    assert rows[0].messages[1] == Message("assistant", "b", 0, {"name": "n"})
    assert [(m.role, m.content, m.weight) for m in rows[1].messages] == [("user", "p", 0), ("assistant", "c", 1)]


def test_text_parts_are_joined_and_tool_calls_need_no_text(tmp_path: Path) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    calls = [{"id": "1", "function": {"name": "f", "arguments": text}} for text in ('{"a": [1]}', "")]
    answer = {"role": "assistant", "content": None, "tool_calls": calls}
    rows, problems = read(_write(tmp_path, {"messages": [parts, answer]}))

    assert problems == []
    assert [message.content for message in rows[0].messages] == ["a\nb", ""]
    read_calls = rows[0].messages[1].extra["tool_calls"]
    assert [call["function"]["arguments"] for call in read_calls] == [{"a": [1]}, {}]


@pytest.mark.parametrize("name", GOOD_ROWS)
def test_what_passes_at_upload_is_read(tmp_path: Path, name: str) -> None:
    row = GOOD_ROWS[name]
    kind: RowKind = "text" if "text" in row else "preference" if "input" in row else "chat"
    (found,) = read_rows(_write(tmp_path, row), "training_file", kind)
    assert isinstance(found, Row), found


def test_functions_of_before_tools_become_tools(tmp_path: Path) -> None:
    function, call = {"name": "f", "parameters": {}}, {"name": "f", "arguments": '{"a": 1}'}
    conversation = [
        USER,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "f", "content": "5"},
        {"role": "assistant", "content": "Five."},
    ]
    (row,), problems = read(_write(tmp_path, {"messages": conversation, "functions": [function]}))

    assert problems == []
    assert row.tools == [{"type": "function", "function": function}]
    asks, answers = row.messages[1:3]
    (made,) = asks.extra["tool_calls"]
    assert made["function"] == {"name": "f", "arguments": {"a": 1}}
    assert (answers.role, answers.content, answers.extra) == ("tool", "5", {"name": "f", "tool_call_id": made["id"]})


def test_a_refusal_is_an_answer(tmp_path: Path) -> None:
    part = {"type": "refusal", "refusal": "No."}
    answers: list[dict[str, Any]] = [
        {"content": [part]},
        {"content": None, "refusal": "No."},
        {"content": "", "refusal": "No."},
        {"content": "No.", "refusal": None},
    ]
    rows = [{"messages": [USER, {"role": "assistant"} | answer]} for answer in answers]
    read_rows, problems = read(_write(tmp_path, *rows))

    assert problems == []
    assert [row.messages[1].content for row in read_rows] == ["No."] * 4


@pytest.mark.parametrize(
    "value",
    [
        "{",
        "[" * 100_000,
        [1],
        {},
        {"messages": []},
        {"messages": "x"},
        {"messages": ["x"]},
        {"messages": [{"role": "boss", "content": "a"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]},
        {"messages": [USER], "tools": "x"},
        {"messages": [USER], "tools": [{"type": "function"}]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{1"}}]}]},
        {"prompt": "a"},
        {"prompt": 1, "completion": "b"},
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, value: object) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    rows, problems = read(path)

    assert rows == []
    assert len(problems) == 1
    assert problems[0].message.startswith("Row 1 ")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "unsupported_content"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": "no"}}, "invalid_tool_calls"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": NaN}'}}, "invalid_tool_calls"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": "[]"}}, "invalid_tool_calls"),
    ],
)
def test_what_no_text_model_learns_has_a_code_of_its_own(tmp_path: Path, message: object, code: str) -> None:
    _, (problem,) = read(_write(tmp_path, {"messages": [USER, message]}))
    assert problem.code == code


@pytest.mark.parametrize(("rows", "held"), [(1, 0), (2, 1), (10, 1), (99, 9), (500, 50), (5000, 100)])
def test_a_tenth_is_held_out_up_to_a_hundred(rows: int, held: int) -> None:
    assert len(held_out_indices(rows, 1)) == held
    assert held_out_indices(rows, 1) == held_out_indices(rows, 1)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_each_pass_sees_every_row_once(rows: int, batch: int, seed: int) -> None:
    steps = steps_per_pass(rows, batch)
    for first in (1, 1 + steps):
        seen = [index for step in range(first, first + steps) for index in indices_of_step(rows, batch, seed, step)]
        assert sorted(seen) == list(range(rows))


def test_the_order_depends_on_pass_and_seed_only() -> None:
    assert indices_of_step(50, 8, 1, 3) == indices_of_step(50, 8, 1, 3)
    assert indices_of_step(50, 8, 1, 3) != indices_of_step(50, 8, 2, 3)
    assert indices_of_step(50, 8, 1, 3) != indices_of_step(50, 8, 1, 3 + steps_per_pass(50, 8))


def test_a_pass_is_put_in_order_once(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[list[int]] = []
    made = np.random.default_rng

    def counted(seed: list[int]) -> np.random.Generator:
        orders.append(seed)
        return made(seed)

    monkeypatch.setattr(np.random, "default_rng", counted)
    steps = [indices_of_step(1003, 10, 77, step) for step in range(1, 2 * 101 + 1)]

    assert orders == [[77, 1], [77, 2]]
    assert [index for step in steps[101:] for index in step] == made([77, 2]).permutation(1003).tolist()


def test_a_row_of_too_many_messages_is_refused(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "a"}
    most, more = ({"messages": [USER, answer] * count} for count in (MAX_MESSAGES // 2, MAX_MESSAGES // 2 + 1))
    rows, (problem,) = read(_write(tmp_path, most, more))

    assert [row.number for row in rows] == [1]
    assert (problem.code, problem.row) == ("too_many_messages", 2)
    assert problem.message == "Row 2 has 2002 messages; split it into rows of at most 2000."


def _write(tmp_path: Path, *values: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path
