"""Every kind of bad row is found, with its line and a stable code; good ones pass."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith_server.files.dataset_check import (
    MAX_LISTED_PROBLEMS,
    DatasetReport,
    check_dataset,
    check_plain_text,
    is_plain_text,
)

EXAMPLES = Path(__file__).parents[3] / "sdk/examples"
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
GOOD = json.dumps({"messages": [USER, ASSISTANT]}).encode()


def check(content: bytes, **options: Any) -> DatasetReport:
    return check_dataset(io.BytesIO(content), **options)


def codes(content: bytes, **options: Any) -> list[tuple[int | None, str]]:
    return [(problem.line, problem.code) for problem in check(content, **options).problems]


def codes_of_row(row: object) -> list[str]:
    return [problem.code for problem in check(json.dumps(row).encode()).problems]


@pytest.mark.parametrize("name", ["support_tickets_train.jsonl", "support_tickets_heldout.jsonl"])
def test_the_example_data_passes(name: str) -> None:
    content = (EXAMPLES / name).read_bytes()
    assert check(content) == DatasetReport(rows=content.count(b"\n"), problems=(), problem_count=0)


GOOD_ROWS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "2+2=", "completion": "4"},
    "system": {"messages": [{"role": "system", "content": "Be brief"}, USER, ASSISTANT]},
    "weights": {"messages": [USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT | {"weight": 1}]},
    "answers without text": {
        "messages": [
            USER,
            ASSISTANT | {"content": "", "weight": 0},
            USER,
            ASSISTANT | {"content": "", "refusal": "No."},
        ]
    },
    "text parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ASSISTANT]},
    "names": {
        "messages": [
            *(USER | {"name": name} for name in ("ann", "bob.smith", "José", "user@x.org", "张伟", "a" * 64)),
            ASSISTANT,
        ]
    },
    "nulls": {
        "messages": [
            USER | {"weight": None, "refusal": None, "x": None},
            ASSISTANT | {"tool_calls": None, "name": None},
        ],
        "tools": None,
        "parallel_tool_calls": None,
    },
    "an answer as a client got it": {"messages": [USER, ASSISTANT | {"annotations": [], "audio": None}]},
    "tools": {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": ""},
            ASSISTANT,
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "parallel_tool_calls": False,
    },
    "text": {"text": "Once upon a time"},
    "preference": {
        "input": {"messages": [USER]},
        "preferred_output": [ASSISTANT],
        "non_preferred_output": [ASSISTANT | {"content": "No"}],
    },
    "functions": {
        "messages": [
            USER,
            {"role": "assistant", "function_call": {"name": "weather", "arguments": "{}"}},
            {"role": "function", "name": "weather", "content": "sunny"},
            ASSISTANT,
        ],
        "functions": [{"name": "weather"}],
    },
}


@pytest.mark.parametrize("name", GOOD_ROWS)
def test_good_rows_pass(name: str) -> None:
    assert codes_of_row(GOOD_ROWS[name]) == []


BAD_ROWS: dict[str, list[Any]] = {
    "too_many_messages": [
        {"messages": [USER, ASSISTANT] * 1001},
        {
            "input": {"messages": [USER] * 2001},
            "preferred_output": [ASSISTANT],
            "non_preferred_output": [ASSISTANT | {"content": "No"}],
        },
    ],
    "not_an_object": ["text", None, 7],
    "missing_messages_list": [{}, {"messages": []}, {"messages": "Hi"}, {"messages": None}],
    "row_unrecognized_key": [{"messages": [USER, ASSISTANT], "id": 1}, {"prompt": "a", "completion": "b", "c": 1}],
    "missing_text": [{"text": 1}, {"text": " "}],
    "missing_prompt": [{"completion": "4"}, {"prompt": 4, "completion": "4"}],
    "missing_completion": [{"prompt": "2+2="}, {"prompt": "2+2=", "completion": ""}],
    "data_type": [
        {"messages": ["Hi", ASSISTANT]},
        {"messages": [{"role": "user", "content": ["Hi"]}, ASSISTANT]},
        {"messages": [USER, ASSISTANT], "parallel_tool_calls": "no"},
    ],
    "message_missing_key": [
        {"messages": [{"content": "Hi"}, ASSISTANT]},
        {"messages": [{"role": "function", "content": "x"}, ASSISTANT]},
    ],
    "message_unrecognized_key": [{"messages": [USER | {"text": "Hi"}, ASSISTANT]}],
    "unrecognized_role": [{"messages": [{"role": "human", "content": "Hi"}, ASSISTANT]}],
    "missing_content": [
        {"messages": [{"role": "user"}, ASSISTANT]},
        {"messages": [{"role": "user", "content": ""}, ASSISTANT]},
        {"messages": [{"role": "user", "content": []}, ASSISTANT]},
        {"messages": [{"role": "user", "content": 5}, ASSISTANT]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}, ASSISTANT]},
        {"messages": [USER, {"role": "assistant", "content": "  "}]},
    ],
    "unsupported_content": [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ASSISTANT]}
    ],
    "invalid_name": [
        *(
            {"messages": [USER | {"name": name}, ASSISTANT]}
            for name in ("a b", "a|b", "<a", "a/b", "a\\b", "", "a" * 65, 1)
        ),
        {"messages": [USER, {"role": "function", "name": "a.b", "content": "x"}, ASSISTANT]},
    ],
    "invalid_weight": [
        {"messages": [USER, ASSISTANT | {"weight": 0.5}]},
        {"messages": [USER, ASSISTANT | {"weight": True}]},
        {"messages": [USER | {"weight": 1}, ASSISTANT]},
    ],
    "example_missing_assistant_message": [{"messages": [USER]}],
    "example_without_weight": [{"messages": [USER, ASSISTANT | {"weight": 0}]}],
    "invalid_tool_calls": [
        {"messages": [USER | {"tool_calls": [CALL]}, ASSISTANT]},
        {"messages": [USER, ASSISTANT | {"tool_calls": []}]},
        {"messages": [USER, ASSISTANT | {"tool_calls": [{"id": "call_1"}]}]},
    ],
    "invalid_function_call": [{"messages": [USER, ASSISTANT | {"function_call": {"name": "x"}}]}],
    "invalid_tool_call_id": [
        {"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "call_9"}, ASSISTANT]},
        {"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": ["call_9"]}, ASSISTANT]},
    ],
    "invalid_tools": [
        {"messages": [USER, ASSISTANT], "tools": {}},
        {"messages": [USER, ASSISTANT], "tools": [{"type": "function", "function": {"name": "a b"}}]},
    ],
    "invalid_functions": [
        {"messages": [USER, ASSISTANT], "functions": [{"name": "f", "parameters": 1}]},
        {
            "messages": [USER, ASSISTANT],
            "functions": [{"name": "f"}],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    ],
}


@pytest.mark.parametrize("code", BAD_ROWS)
def test_bad_rows_are_named(code: str) -> None:
    for row in BAD_ROWS[code]:
        assert codes_of_row(row) == [code], row


BAD_LINES: dict[str, bytes] = {
    "not_utf8": b'{"prompt": "\xff", "completion": "x"}',
    "invalid_json": GOOD[:-3],
    "duplicate_key": b'{"prompt": "a", "prompt": "b", "completion": "c"}',
    "invalid_unicode": rb'{"prompt": "\ud800", "completion": "x"}',
}


@pytest.mark.parametrize("code", BAD_LINES)
def test_bad_lines_are_named(code: str) -> None:
    assert codes(GOOD + b"\n" + BAD_LINES[code] + b"\n" + GOOD) == [(2, code)]


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": NaN, "completion": "x"}',
        b'{"text": ' + b"[" * 100_000,
        b'{"text": ' + b"[" * 64 + b"]" * 64 + b"}",
        b'{"prompt": ' + b"9" * 5000 + b"}",
        GOOD + GOOD,
    ],
    ids=["nan", "endless", "deep", "long number", "two objects"],
)
def test_what_only_lenient_parsers_take_is_not_json(line: bytes) -> None:
    assert codes(line) == [(1, "invalid_json")]


ARGUMENTS = {
    r'{"a": "\ud83d"}': r"has half of a \ud800-style pair, which is no character",
    '{"a": NaN}': "has NaN, which is not JSON",
    '{"a": -Infinity}': "has -Infinity, which is not JSON",
    '{"a": 1, "a": 2}': 'has the key "a" twice in one object',
    '{"a":' + "[" * 900 + "]" * 900 + "}": "is nested deeper than 64 levels",
    "{'a': 1}": "is not valid JSON: Expecting property name enclosed in double quotes at character 2",
}


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_arguments_of_calls_are_read_as_strictly_as_rows(arguments: str) -> None:
    function = {"name": "weather", "arguments": arguments}
    for code, call in (
        ("invalid_tool_calls", {"tool_calls": [CALL | {"function": function}]}),
        ("invalid_function_call", {"function_call": function}),
    ):
        row = json.dumps({"messages": [USER, {"role": "assistant"} | call]}).encode()
        (problem,) = check(GOOD + b"\n" + row).problems
        what = f'has a call with "arguments" whose text {ARGUMENTS[arguments]}'
        assert (problem.code, problem.message) == (code, f"Line 2 {what} (message 2).")


def test_arguments_that_are_no_object_are_refused_and_empty_ones_taken() -> None:
    given: tuple[object, ...] = ("", "[]", "7", {})
    calls = [{"role": "assistant", "function_call": {"name": "f", "arguments": arguments}} for arguments in given]
    told = [codes_of_row({"messages": [USER, call]}) for call in calls]
    assert told == [[], *([["invalid_function_call"]] * 3)]


def test_the_place_of_an_error_is_told_also_at_the_end_of_a_line() -> None:
    (at_end, within) = check(b'{"text": "a"}\n{"text":\r\n{"text" 1}\n').problems
    assert at_end.message == "Line 2 is not valid JSON: Expecting value at character 9."
    assert within.message == "Line 3 is not valid JSON: Expecting ':' delimiter at character 9."


def test_a_table_is_told_by_how_it_begins() -> None:
    assert check(b"prompt,completion\n").problems[0].message == (
        'Line 1 is not valid JSON: Expecting value at character 1; it begins with "prompt,com".'
    )


WRONG_FORMATS: dict[str, tuple[bytes, str, str]] = {
    "gzip": (gzip.compress(GOOD), "not_jsonl", "decompress"),
    "zip": (b"PK\x03\x04\x14\x00\n\xff\n", "not_jsonl", "Excel"),
    "parquet": (b"PAR1\x15\x04\n\xff\n", "not_jsonl", "Parquet"),
    "utf-16": (GOOD.decode().encode("utf-16"), "not_utf8", "save it as UTF-8"),
    "utf-16 of the other order": (b"\xfe\xff" + GOOD.decode().encode("utf-16-be"), "not_utf8", "save it as UTF-8"),
    "array": (b"\xef\xbb\xbf\n [\n" + GOOD + b",\n" + GOOD + b"\n]", "not_an_object", "Line 2 begins with [, as"),
    "array on one line": (b"[" + GOOD + b"]", "not_an_object", "write one object on each line (JSONL)"),
    "indented": (b"{\n" + b'  "text":\n' * 1000, "invalid_json", "without indentation"),
    "carriage returns": (b"\r".join([GOOD] * 3), "invalid_json", "line feeds"),
}


@pytest.mark.parametrize("name", WRONG_FORMATS)
def test_a_file_of_another_format_has_one_problem_that_names_it(name: str) -> None:
    content, code, words = WRONG_FORMATS[name]
    report = check(content)
    assert (report.problem_count, [problem.code for problem in report.problems]) == (1, [code])
    assert words in report.problems[0].message


def test_a_single_row_may_end_with_a_carriage_return() -> None:
    assert codes(GOOD + b"\r") == []


def test_who_brings_rows_for_reinforcement_is_told_that_it_is_not_offered() -> None:
    (problem,) = check(json.dumps({"messages": [USER, ASSISTANT], "answer": "x"}).encode()).problems
    assert problem.message == (
        'Line 1 has the unknown key "answer"; remove it; keys beside the messages are for reinforcement '
        "fine-tuning, which is not offered."
    )


def test_all_problems_are_told_with_their_lines() -> None:
    report = check(b"\n".join([GOOD, b"{", GOOD, b"[]", b'{"messages": [{"role": "user", "content": "Hi"}]}']))
    assert [(problem.line, problem.code) for problem in report.problems] == [
        (2, "invalid_json"),
        (4, "not_an_object"),
        (5, "example_missing_assistant_message"),
    ]
    assert report.rows == 5
    assert report.problems[2].message == ("Line 5 has no assistant message, so there is nothing to learn.")


def test_the_list_of_problems_is_capped_and_the_count_is_not() -> None:
    report = check(b"{}\n" * 1000)
    assert len(report.problems) == MAX_LISTED_PROBLEMS
    assert report.problem_count == 1000


def test_blank_lines_and_a_byte_order_mark_are_skipped() -> None:
    report = check(b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n" + GOOD + b"\n{\n  \n")
    assert (report.rows, [problem.line for problem in report.problems]) == (3, [4])


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(content: bytes) -> None:
    assert codes(content) == [(None, "empty_file")]


def test_one_file_holds_one_kind_of_row() -> None:
    prompt = b'{"prompt": "a", "completion": "b"}'
    assert codes(b"\n".join([GOOD, prompt, GOOD])) == [(2, "mixed_row_types")]


def test_rows_of_different_methods_do_not_mix() -> None:
    rows = [GOOD_ROWS["text"], GOOD_ROWS["preference"], GOOD_ROWS["text"]]
    assert codes("\n".join(json.dumps(row) for row in rows).encode()) == [(2, "mixed_row_types")]


def test_a_plain_text_is_one_row() -> None:
    assert is_plain_text("Book.TXT")
    assert not is_plain_text("rows.jsonl")
    assert check_plain_text(io.BytesIO("Es war\n\neinmal – ein Müller.".encode())) == DatasetReport(1, (), 0)


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"", "empty_file", None),
        (b"\xef\xbb\xbf \n", "empty_file", None),
        (b"a\nb\xff", "not_utf8", 2),
        (b"a" * (1 << 20) + b"\n\xc3", "not_utf8", 2),
        (b"a\nb\nc\x00", "not_plain_text", 3),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(content: bytes, code: str, line: int | None) -> None:
    (problem,) = check_plain_text(io.BytesIO(content)).problems
    assert (problem.code, problem.line) == (code, line)


def test_a_line_over_the_limit_is_read_past_in_pieces() -> None:
    long = b'{"prompt": "' + b"a" * 500 + b'", "completion": "b"}'
    short = b'{"prompt": "a", "completion": "b"}'
    assert codes(b"\n".join([short, long, short, b"{"]), max_line_bytes=100) == [
        (2, "line_too_long"),
        (4, "invalid_json"),
    ]
    assert codes(long, max_line_bytes=len(long)) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "tools", "x"]), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["messages", "tools", "functions", "prompt", "completion"]), json_values))
def test_no_row_makes_the_check_fail(row: dict[str, Any]) -> None:
    report = check(json.dumps(row).encode())
    assert report.rows == 1


@given(st.binary())
def test_no_bytes_make_the_check_fail(content: bytes) -> None:
    check(content)
