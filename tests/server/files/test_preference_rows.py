"""Preference rows: every way of being wrong has its code."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith_server.files.preference_rows import preference_row_faults

USER = {"role": "user", "content": "Hi"}
GOOD: dict[str, Any] = {
    "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [{"role": "assistant", "content": "Hello"}],
    "non_preferred_output": [{"role": "assistant", "content": "What"}],
}


def codes(**changes: Any) -> list[str]:
    row = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    return [fault.code for fault in preference_row_faults(row)]


def test_both_spellings_are_read() -> None:
    assert codes() == []
    specified = {
        "preferred_output": ...,
        "non_preferred_output": ...,
        "preferred_completion": GOOD["preferred_output"],
        "non_preferred_completion": GOOD["non_preferred_output"],
    }
    assert codes(**specified) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"id": 1}, "row_unrecognized_key"),
        ({"input": {"messages": [USER], "id": 1}}, "row_unrecognized_key"),
        ({"input": ...}, "missing_input"),
        ({"input": "Hi"}, "missing_input"),
        ({"input": {"messages": []}}, "missing_input"),
        ({"input": {"messages": [{"role": "user"}]}}, "missing_content"),
        ({"input": {"messages": [USER], "tools": 1}}, "invalid_tools"),
        ({"input": {"messages": [USER, GOOD["preferred_output"][0]]}}, "input_ends_with_assistant"),
        ({"preferred_output": ...}, "missing_preferred_output"),
        ({"preferred_output": GOOD["preferred_output"] * 2}, "missing_preferred_output"),
        ({"preferred_output": [USER]}, "missing_preferred_output"),
        ({"preferred_output": [{"role": "assistant", "content": " "}]}, "missing_content"),
        ({"non_preferred_output": "No"}, "missing_non_preferred_output"),
        ({"non_preferred_output": ["No"]}, "data_type"),
        ({"non_preferred_output": GOOD["preferred_output"]}, "identical_outputs"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], code: str) -> None:
    assert codes(**changes) == [code]


values = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["messages", "role", "content", "x"]), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(list(GOOD)), values))
def test_no_row_makes_the_check_fail(row: dict[str, Any]) -> None:
    assert list(preference_row_faults(row))
