"""Owns what a chat row must look like: messages, their parts, tool calls and tools. Pure.

It must not know lines or files; dataset_check.py reads those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tunesmith_server.files.faults import Fault, shown
from tunesmith_server.files.strict_json import BadJson, parse

MAX_MESSAGES = 2000
"""Of a row, as the trainer takes them: it renders a conversation anew for each answer."""

_ROW_KEYS = {"messages", "tools", "parallel_tool_calls", "functions"}
_MESSAGE_KEYS = {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call"}
_ANSWER_KEYS = {"refusal", "audio", "annotations"}
"""What OpenAI's answers have besides, mostly empty."""
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MESSAGE_NAME = re.compile(r"[^\s<|\\/>]{1,64}")
"""Of who speaks, as OpenAI takes it; functions are named more strictly."""


def chat_row_faults(row: dict[str, Any]) -> Iterator[Fault]:
    """Everything that is wrong with a row that has the key `messages`."""
    for key in sorted(row.keys() - _ROW_KEYS):
        # Only rows of reinforcement fine-tuning have more keys, for their graders.
        what = f"has the unknown key {shown(key)}; remove it"
        extra = "; keys beside the messages are for reinforcement fine-tuning, which is not offered"
        yield Fault("row_unrecognized_key", what + extra)
    yield from tools_faults(row)
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        yield Fault("missing_messages_list", 'needs a list "messages" with at least one message')
        return
    if len(messages) > MAX_MESSAGES:
        yield too_many_messages(len(messages))
        return
    call_ids: set[str] = set()
    for number, message in enumerate(messages, start=1):
        for code, what in message_faults(message, call_ids):
            yield Fault(code, f"{what} (message {number})")
    yield from _assistant_faults([message for message in messages if isinstance(message, dict)])


def message_faults(message: object, call_ids: set[str]) -> Iterator[Fault]:
    """Everything that is wrong with one message; `call_ids` collects the calls that later messages may answer."""
    if not isinstance(message, dict):
        yield Fault("data_type", "has a message that is not a JSON object")
        return
    role = message.get("role")
    # Null is as good as absent: libraries that write tables give each message every key that any of them has.
    given = {key for key, value in message.items() if value is not None}
    for key in sorted(given - _MESSAGE_KEYS - (_ANSWER_KEYS if role == "assistant" else set())):
        yield Fault("message_unrecognized_key", f"has a message with the unknown key {shown(key)}; remove it")
    if role is None:
        yield Fault("message_missing_key", 'has a message without "role"')
    elif role not in _ROLES:
        yield Fault("unrecognized_role", f"has a message whose role is not one of {', '.join(_ROLES)}")
    yield from _name_faults(message)
    yield from _weight_faults(message)
    yield from _content_faults(message)
    yield from _tool_call_faults(message, call_ids)


def too_many_messages(count: int) -> Fault:
    """What is wrong with a row of more messages than the trainer takes."""
    return Fault("too_many_messages", f"has {count} messages; split it into rows of at most {MAX_MESSAGES}")


def tools_faults(row: dict[str, Any]) -> Iterator[Fault]:
    """Everything that is wrong with the tools that are offered beside messages."""
    for key in ("tools", "functions"):
        tools = row.get(key)
        if tools is None:
            continue
        is_right = _is_tool if key == "tools" else _is_function
        if not isinstance(tools, list) or not all(is_right(tool) for tool in tools):
            what = f'has "{key}" that are not a list of functions with a "name" and "parameters" as an object'
            yield Fault(f"invalid_{key}", what)
    if row.get("tools") and row.get("functions"):
        yield Fault("invalid_functions", 'has both "tools" and "functions"; keep one of them')
    if not isinstance(row.get("parallel_tool_calls"), bool | None):
        yield Fault("data_type", 'has a "parallel_tool_calls" that is neither true nor false')


def _assistant_faults(messages: list[dict[str, Any]]) -> Iterator[Fault]:
    weights = [message.get("weight", 1) for message in messages if message.get("role") == "assistant"]
    if not weights:
        yield Fault("example_missing_assistant_message", "has no assistant message, so there is nothing to learn")
    elif all(weight == 0 for weight in weights):
        yield Fault("example_without_weight", "has weight 0 on every assistant message, so there is nothing to learn")


def _name_faults(message: dict[str, Any]) -> Iterator[Fault]:
    name = message.get("name")
    if name is None:
        return
    pattern, allowed = _MESSAGE_NAME, r"characters other than spaces, <, |, \, / and >"
    if message.get("role") == "function":
        pattern, allowed = _FUNCTION_NAME, "letters, digits, _ or -"
    if not isinstance(name, str) or not pattern.fullmatch(name):
        yield Fault("invalid_name", f'has a message whose "name" is not 1 to 64 {allowed}')


def _weight_faults(message: dict[str, Any]) -> Iterator[Fault]:
    weight = message.get("weight")
    if weight is None:
        return
    if isinstance(weight, bool) or weight not in (0, 1):
        yield Fault("invalid_weight", 'has a message whose "weight" is neither 0 nor 1')
    elif message.get("role") != "assistant":
        yield Fault("invalid_weight", 'has a "weight" on a message that is not the assistant\'s')


def _content_faults(message: dict[str, Any]) -> Iterator[Fault]:
    content, role = message.get("content"), message.get("role")
    calls = role == "assistant" and (message.get("tool_calls") or message.get("function_call"))
    refusal = message.get("refusal") if role == "assistant" else None
    if message.get("audio") is not None and role == "assistant":
        yield Fault("unsupported_content", 'has "audio"; models here are tuned on text only')
    if refusal is not None and not (isinstance(refusal, str) and refusal.strip()):
        yield Fault("data_type", 'has a "refusal" that is neither null nor a text')
    if isinstance(content, list) and content:
        yield from _part_faults(content)
    elif content is None:
        if not calls and refusal is None:
            yield Fault("missing_content", 'has a message without "content"')
    elif not isinstance(content, str):
        yield Fault("missing_content", 'has a message whose "content" is not a text')
    elif not content.strip() and not (calls or refusal or _may_be_empty(message)):
        yield Fault("missing_content", 'has a message with an empty "content"')


def _may_be_empty(message: dict[str, Any]) -> bool:
    """A tool may have nothing to say, and what an assistant said without being learnt from is as it was."""
    return message.get("role") in ("tool", "function") or message.get("weight") == 0


def _part_faults(parts: list[Any]) -> Iterator[Fault]:
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            yield Fault("data_type", 'has a part of "content" that is not an object with a "type"')
        elif kind not in ("text", "refusal"):
            yield Fault("unsupported_content", f"has a part of type {shown(kind)}; models here are tuned on text only")
        elif not isinstance(part.get(kind), str) or not part[kind].strip():
            yield Fault("missing_content", f'has a {kind} part without "{kind}"')


def _tool_call_faults(message: dict[str, Any], call_ids: set[str]) -> Iterator[Fault]:
    """Checks calls and answers; `call_ids` collects the calls that later messages may answer."""
    role = message.get("role")
    calls = message.get("tool_calls")
    if calls is not None:
        if role != "assistant" or not isinstance(calls, list) or not calls:
            yield Fault("invalid_tool_calls", 'has "tool_calls" that are not a list of an assistant message')
            return
        for entry in calls:
            if not _is_tool_call(entry):
                what = (
                    'has a tool call that is not {"id", "type": "function", "function": {"name", "arguments"}}, '
                    "with the arguments as the text of a JSON object"
                )
                yield Fault("invalid_tool_calls", what)
            else:
                call_ids.add(entry["id"])
                yield from _arguments_faults("invalid_tool_calls", entry["function"]["arguments"])
    call = message.get("function_call")
    if call is not None and not (role == "assistant" and _is_function_call(call)):
        yield Fault("invalid_function_call", 'has a "function_call" that is not an assistant\'s {"name", "arguments"}')
    elif call is not None:
        yield from _arguments_faults("invalid_function_call", call["arguments"])
    answered = message.get("tool_call_id")
    if role == "tool" and not (isinstance(answered, str) and answered in call_ids):
        yield Fault("invalid_tool_call_id", 'has a tool message whose "tool_call_id" answers no call before it')
    if role == "function" and not isinstance(message.get("name"), str):
        yield Fault("message_missing_key", 'has a function message without "name"')


def _is_tool(tool: object) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "function" and _is_function(tool.get("function"))


def _is_function(function: object) -> bool:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    return _FUNCTION_NAME.fullmatch(function["name"]) is not None and isinstance(function.get("parameters", {}), dict)


def _is_tool_call(call: object) -> bool:
    if not isinstance(call, dict) or call.get("type") != "function":
        return False
    return isinstance(call.get("id"), str) and _is_function_call(call.get("function"))


def _is_function_call(call: object) -> bool:
    return isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), str)


def _arguments_faults(code: str, arguments: str) -> Iterator[Fault]:
    """What keeps a text from being that of a JSON object; some write calls without arguments as an empty text."""
    try:
        value = parse(arguments or "{}")
    except BadJson as error:
        yield Fault(code, f'has a call with "arguments" whose text {error.fault.what}')
        return
    if not isinstance(value, dict):
        yield Fault(code, 'has a call with "arguments" that are not the text of a JSON object')
