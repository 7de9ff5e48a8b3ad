"""Owns chats in the form that OpenAI had before tools, `functions` and `function_call`: to today's form and back.

It must not know engines, models or streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from tunesmith_inference.errors import invalid_request

_CALL_ID = "call00001"
"""Of the call that a function's answer follows; rows to train on get the same."""


def with_tools(body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """A chat's body in today's form, and whether its answer is to have the former one.

    Raises 400 for functions of another shape, or beside tools.
    """
    messages = body.get("messages")
    if isinstance(messages, list):
        body = {**body, "messages": [_message(message) for message in messages]}
    if "functions" not in body and "function_call" not in body:
        return body, False
    for today in ("tools", "tool_choice"):
        if today in body:
            raise invalid_request("invalid_value", "Send either `tools` or `functions`, not both.", today)
    functions, choice = body.pop("functions", []), body.pop("function_call", None)
    if not isinstance(functions, list) or not functions or not all(isinstance(one, dict) for one in functions):
        raise invalid_request("invalid_type", "`functions` is a list of objects, at least one.", "functions")
    if not isinstance(choice, dict) and choice not in (None, "none", "auto"):
        raise invalid_request("invalid_type", '`function_call` is "none", "auto" or {"name": …}.', "function_call")
    body["tools"] = [{"type": "function", "function": one} for one in functions]
    body["parallel_tool_calls"] = False  # the former form has room for one call
    if choice is not None:
        body["tool_choice"] = {"type": "function", "function": choice} if isinstance(choice, dict) else choice
    return body, True


def with_function_calls(answer: dict[str, Any]) -> dict[str, Any]:
    """A chat's answer, or a chunk of one, whose first call of a tool stands in the former form."""
    for choice in answer.get("choices", ()):
        said = choice.get("message") or choice.get("delta") or {}
        calls = said.pop("tool_calls", None) or []
        for call in calls[:1]:
            if not call.get("index"):
                function = call.get("function") or {}
                said["function_call"] = {name: text for name, text in function.items() if text is not None}
        if choice.get("finish_reason") == "tool_calls":
            choice["finish_reason"] = "function_call"
    return answer


async def with_function_calls_in(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """The same for every chunk."""
    async for chunk in chunks:
        yield with_function_calls(chunk)


def _message(message: Any) -> Any:
    """What calls a function, or answers a call, in today's form; anything else as it is."""
    if not isinstance(message, Mapping):
        return message
    if message.get("role") == "function":
        return {**message, "role": "tool", "tool_call_id": _CALL_ID}
    call = message.get("function_call")
    if call is None:
        return message
    rest = {name: part for name, part in message.items() if name != "function_call"}
    return {**rest, "tool_calls": [{"id": _CALL_ID, "type": "function", "function": call}]}
