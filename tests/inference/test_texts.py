"""Every text of a chat is found, and only texts."""

from __future__ import annotations

import json
from typing import Any

from tunesmith_inference.texts import changed_message, changed_tool, prompt_texts, said_in

MARKED = "<{}>".format


def called(arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": arguments}}


def test_a_message_keeps_its_form() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "no"}]
    message: dict[str, Any] = {
        "role": "user",
        "content": parts,
        "name": "ann",
        "cache_control": {},
        "tool_call_id": None,
    }
    assert changed_message(message, MARKED) == {
        "role": "user",
        "content": [{"type": "text", "text": "<a>"}, {"type": "text", "text": "<no>"}],
    }
    same = {"role": "tool", "content": "a", "tool_call_id": "call_1", "name": "ann"}
    assert changed_message(same, str) == same


def test_arguments_of_calls_stay_json() -> None:
    arguments = json.dumps({"to": "a", "card": 4111, "all": [True, None, 1.5, {"k": "v"}]})
    changed = changed_message({"role": "assistant", "tool_calls": [called(arguments)]}, MARKED)
    (call,) = changed["tool_calls"]
    assert (call["id"], call["function"]["name"]) == ("call_1", "add")
    assert json.loads(call["function"]["arguments"]) == {
        "<to>": "<a>",
        "<card>": "<4111>",
        "<all>": [True, None, "<1.5>", {"<k>": "<v>"}],
    }
    untouched = '{"a":  1e2}'
    (call,) = changed_message({"role": "assistant", "tool_calls": [called(untouched)]}, str)["tool_calls"]
    assert call["function"]["arguments"] == untouched
    (call,) = changed_message({"role": "assistant", "tool_calls": [called("{half")]}, MARKED)["tool_calls"]
    assert call["function"]["arguments"] == "<{half>"


def test_a_tool_keeps_its_name() -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
    changed = changed_tool(tool, MARKED)
    assert (changed["type"], changed["function"]["name"]) == ("function", "add")
    assert changed["function"]["<description>"] == "<adds>"


def test_all_that_the_model_reads_is_a_prompt() -> None:
    asked = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "one"}]}, {"role": "assistant"}],
        "tools": [{"function": {"description": "two"}}],
        "chat_template_kwargs": {"extra": "three"},
        "stop": "four",
        "temperature": 1,
    }
    assert prompt_texts(asked) == ["one", '[{"function": {"description": "two"}}]', '{"extra": "three"}']
    assert prompt_texts({"messages": [{"role": "wizard", "tool_calls": [called("x")]}]}) == ["wizard\ncall_1\nadd\nx"]
    assert prompt_texts({"prompt": ["a", " ", "b"], "suffix": "c"}) == ["a", "b", "c"]


def test_all_that_a_choice_says_is_found() -> None:
    message = {"content": "a", "reasoning_content": "b", "tool_calls": [called("c")]}
    assert said_in({"message": message}) == "abaddc"
    assert said_in({"delta": {"content": None, "tool_calls": [{"index": 0, "function": {"arguments": "c"}}]}}) == "c"
    assert said_in({"text": "a"}) == "a"
    assert said_in({"delta": {}, "finish_reason": "stop"}) == ""
