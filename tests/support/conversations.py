"""Owns conversations, with tools and without, that are to be rendered alike in training and in serving."""

from __future__ import annotations

from typing import Any

ANSWER = {"role": "assistant", "content": "red"}
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
TOOL = {"function": {"parameters": {"type": "object", "properties": {"b": {}, "a": {}}}, "name": "f"}}
TOOLS = [TOOL | {"type": "function"}]


def call(arguments: str) -> dict[str, Any]:
    """A message that calls the tool."""
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]}


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "a", "name": "ann"}]},
    "parts": {"messages": [{"role": "user", "content": PARTS}]},
    "developer": {"messages": [{"role": "developer", "content": "be"}, {"role": "user", "content": "a"}]},
    "late developer": {
        "messages": [
            {"role": "system", "content": "be"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0},
            {"role": "developer", "content": PARTS},
            {"role": "user", "content": "c"},
        ]
    },
    "tools": {"messages": [{"role": "user", "content": "a"}], "tools": TOOLS},
    "call": {
        "messages": [
            {"role": "user", "content": "a"},
            call('{"b":1,"a":"é"}') | {"weight": 0},
            {"role": "tool", "tool_call_id": "c", "content": "5"},
        ],
        "tools": TOOLS,
    },
    "empty call": {
        "messages": [
            {"role": "user", "content": "a"},
            call("") | {"weight": 0},
            {"role": "tool", "tool_call_id": "c", "content": PARTS},
        ],
        "tools": TOOLS,
    },
}
