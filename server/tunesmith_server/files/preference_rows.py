"""Owns what a preference row must look like: a prompt, the answer that is preferred and one that is not. Pure.

It must not know lines or files; dataset_check.py reads those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunesmith_server.files.chat_rows import MAX_MESSAGES, message_faults, too_many_messages, tools_faults
from tunesmith_server.files.faults import Fault, shown

PREFERENCE_KEYS = (
    "input",
    "preferred_output",
    "non_preferred_output",
    "preferred_completion",
    "non_preferred_completion",
)
"""One of them makes a row a preference row. OpenAI's guide says `…_output`, its specification `…_completion`."""

_INPUT_KEYS = {"messages", "tools", "parallel_tool_calls"}


def preference_row_faults(row: dict[str, Any]) -> Iterator[Fault]:
    """Everything that is wrong with a row that has one of the preference keys."""
    for key in sorted(row.keys() - set(PREFERENCE_KEYS)):
        yield Fault("row_unrecognized_key", f"has the unknown key {shown(key)}; remove it")
    call_ids: set[str] = set()
    yield from _input_faults(row.get("input"), call_ids)
    preferred, other = _answers(row, "preferred"), _answers(row, "non_preferred")
    yield from _answer_faults(preferred, "preferred_output", call_ids)
    yield from _answer_faults(other, "non_preferred_output", call_ids)
    if isinstance(preferred, list) and preferred and preferred == other:
        yield Fault("identical_outputs", "has the same answer twice, so that nothing is preferred")


def _answers(row: dict[str, Any], name: str) -> object:
    return row.get(f"{name}_output", row.get(f"{name}_completion"))


def _input_faults(given: object, call_ids: set[str]) -> Iterator[Fault]:
    messages = given.get("messages") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(messages, list) or not messages:
        yield Fault("missing_input", 'needs "input" as {"messages": […]} with at least one message')
        return
    if len(messages) > MAX_MESSAGES:
        yield too_many_messages(len(messages))
        return
    for key in sorted(given.keys() - _INPUT_KEYS):
        yield Fault("row_unrecognized_key", f'has the unknown key {shown(key)} in "input"; remove it')
    yield from tools_faults(given)
    for number, message in enumerate(messages, start=1):
        for code, what in message_faults(message, call_ids):
            yield Fault(code, f"{what} (message {number})")
    last = messages[-1]
    if isinstance(last, dict) and last.get("role") == "assistant":
        yield Fault(
            "input_ends_with_assistant", 'has an "input" that ends with an assistant message; put a question last'
        )


def _answer_faults(answers: object, name: str, call_ids: set[str]) -> Iterator[Fault]:
    if not isinstance(answers, list) or len(answers) != 1:
        yield Fault(f"missing_{name}", f'needs "{name}" as a list of one assistant message')
        return
    for code, what in message_faults(answers[0], set(call_ids)):
        yield Fault(code, f"{what} ({name})")
    if isinstance(answers[0], dict) and answers[0].get("role") in ("system", "developer", "user", "tool", "function"):
        yield Fault(f"missing_{name}", f'has a "{name}" whose message is not the assistant\'s')
