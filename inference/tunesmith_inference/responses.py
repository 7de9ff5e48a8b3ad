"""Owns the Responses API in terms of chat completions: a request of the one as a request of the other, an answer back.

It must not know HTTP, engines or streams; everything here is pure. Nothing is stored: what refers to an earlier
response is refused, and the client sends the whole conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith_inference.errors import GatewayError, invalid_request, missing_parameter, unknown_parameter

_RENAMED = {"max_output_tokens": "max_completion_tokens"}
_SAME = frozenset(["model", "stream", "temperature", "top_p", "parallel_tool_calls", "chat_template_kwargs"])
_TRANSLATED = frozenset(["input", "instructions", "text", "tools", "tool_choice", "reasoning"])
_IGNORED = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "max_tool_calls",
        "stream_options",
    ]
)
_STATEFUL = frozenset(["previous_response_id", "conversation", "prompt"])
_ONLY = {"background": False, "truncation": "disabled", "top_logprobs": 0}
"""Parameters with the one value that can be had."""
_NOT_INCLUDED = "message.output_text.logprobs"
_ROLES = frozenset(["user", "assistant", "system", "developer"])
_TEXT = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""The kinds of content that are text, and where each has it."""
_PARAMETERS = {
    "messages": "input",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def chat_parameters(body: Mapping[str, Any], open_weights: frozenset[str]) -> dict[str, Any]:
    """The body of a chat completion that asks the same; raises 400 with the parameter at fault.

    `open_weights` are parameters that both have beyond OpenAI's.
    """
    if "input" not in body:
        raise missing_parameter("input")
    parameters: dict[str, Any] = {}
    for name, value in body.items():
        if name in _SAME | open_weights or name in _RENAMED:
            parameters[_RENAMED.get(name, name)] = value
        elif name not in _TRANSLATED | _IGNORED:
            _refuse_unless_harmless(name, value)
    parameters["messages"] = _instructions(body) + _messages(body["input"])
    tools = _tools(body.get("tools", []))
    if tools:
        parameters["tools"] = tools
    # Without tools it is what a response says of itself, and what engines refuse.
    if "tool_choice" in body and (tools or body["tool_choice"] != "auto"):
        parameters["tool_choice"] = _tool_choice(body["tool_choice"])
    parameters |= _response_format(_object(body, "text"))
    effort = _object(body, "reasoning").get("effort")
    return parameters if effort is None else {**parameters, "reasoning_effort": effort}


def begun(body: Mapping[str, Any], response_id: str, created: float) -> dict[str, Any]:
    """A response to `body` of which nothing is made yet; `created` in seconds since the epoch."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(created),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata", {}),
        "model": body["model"],
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": body.get("reasoning", {"effort": None, "summary": None}),
        "store": False,
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}, **body.get("text", {})},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
        "user": body.get("user"),
    }


def answered(response: Mapping[str, Any], completion: Mapping[str, Any]) -> dict[str, Any]:
    """The response that a whole chat completion makes of one that was `begun`."""
    (choice,) = completion["choices"]
    message, reason = choice["message"], choice["finish_reason"]
    calls = message.get("tool_calls") or []
    said = message.get("content") or ""
    output = [message_item(response, 0, said)] if said or not calls else []
    output += [call_item(response, len(output) + i, call["id"], call["function"]) for i, call in enumerate(calls)]
    return ended(response, output, reason, completion.get("usage") or {})


def ended(
    response: Mapping[str, Any], output: list[dict[str, Any]], reason: str | None, usage: Mapping[str, Any]
) -> dict[str, Any]:
    """A response with all its output; `reason` and `usage` as in chat completions."""
    cut = _INCOMPLETE.get(reason or "")
    if cut and output:
        output = [*output[:-1], {**output[-1], "status": "incomplete"}]
    return {
        **response,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": cut} if cut else None,
        "output": output,
        "usage": _usage(usage),
    }


def failed(response: Mapping[str, Any], output: list[dict[str, Any]], error: GatewayError) -> dict[str, Any]:
    """A response that an error ended; `output` is what was made until then."""
    told = {"code": "server_error", "message": error.message}  # the published codes have no finer word
    return {**response, "status": "failed", "error": told, "output": output}


def message_item(response: Mapping[str, Any], index: int, text: str) -> dict[str, Any]:
    """A finished message at that place of the output."""
    return {
        "id": f"msg_{_serial(response)}_{index}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [text_part(text)],
    }


def text_part(text: str) -> dict[str, Any]:
    """The content of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(response: Mapping[str, Any], index: int, call_id: str, function: Mapping[str, Any]) -> dict[str, Any]:
    """A finished call at that place of the output; `function` has name and arguments."""
    return {
        "id": f"fc_{_serial(response)}_{index}",
        "type": "function_call",
        "status": "completed",
        "call_id": call_id,
        "name": function["name"],
        "arguments": function["arguments"],
    }


def in_its_words(error: GatewayError) -> GatewayError:
    """The error with the parameter at fault under the name that it has in the Responses API."""
    if error.param is not None:
        first, dot, rest = error.param.partition(".")
        error.param = _PARAMETERS.get(first, first) + dot + rest.removeprefix("json_schema.")
    return error


def _refuse_unless_harmless(name: str, value: object) -> None:
    if name in _STATEFUL:
        message = f"Nothing is stored here, so `{name}` names nothing. Send the whole conversation in `input`."
        raise invalid_request("unsupported_parameter", message, name)
    if name == "include":
        if isinstance(value, list) and _NOT_INCLUDED not in value:
            return  # what belongs to tools and reasoning items, which there are none of
        message = "`include` cannot ask for logprobs. Ask for them at /v1/chat/completions."
        raise invalid_request("unsupported_value", message, name)
    if name not in _ONLY:
        raise unknown_parameter(name)
    if value != _ONLY[name]:
        raise invalid_request("unsupported_value", f"`{name}` has to be {str(_ONLY[name]).lower()} here.", name)


def _instructions(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "instructions" not in body:
        return []
    return [{"role": "system", "content": _text(body["instructions"], "instructions")}]


def _messages(given: object) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid_request("invalid_type", "`input` is a text or a list of items with at least one.", "input")
    messages: list[dict[str, Any]] = []
    for place, item in enumerate(given):
        _append(messages, item, f"input.{place}")
    return messages


def _append(messages: list[dict[str, Any]], item: object, at: str) -> None:
    """An item as a message; a call goes to the assistant's message before it, as the model made it."""
    if not isinstance(item, dict):
        raise invalid_request("invalid_type", "Every item of `input` is an object.", at)
    match item.get("type", "message"):
        case "message" if isinstance(item.get("role"), str) and item["role"] in _ROLES:
            messages.append({"role": item["role"], "content": _text(item.get("content"), f"{at}.content")})
        case "function_call":
            function = {name: _string(item, name, at) for name in ("name", "arguments")}
            call = {"id": _string(item, "call_id", at), "type": "function", "function": function}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(call)
        case "function_call_output":
            content = _text(item.get("output"), f"{at}.output")
            messages.append({"role": "tool", "tool_call_id": _string(item, "call_id", at), "content": content})
        case _:
            message = "Items are messages of user, assistant, system or developer, function_call, function_call_output."
            raise invalid_request("invalid_value", message, at)


def _text(content: object, at: str) -> str:
    """The text of content in either form; parts are joined as engines join them."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get(_TEXT.get(str(part.get("type")), "")) if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise invalid_request("invalid_value", "Content must be text.", at)
    return "\n".join(map(str, texts))


def _tools(tools: object) -> list[dict[str, Any]]:
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise invalid_request("invalid_type", "`tools` is a list of objects.", "tools")
    for place, tool in enumerate(tools):
        if tool.get("type") != "function":
            message = "Only tools of the type `function` can be called: yours to run, none is built in."
            raise invalid_request("unsupported_tool", message, f"tools.{place}.type")
    return [{"type": "function", "function": _without_type(tool)} for tool in tools]


def _tool_choice(choice: object) -> object:
    if isinstance(choice, str):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return {"type": "allowed_tools", "allowed_tools": {**choice, "tools": _tools(choice.get("tools"))}}
    if not isinstance(choice, dict) or choice.get("type") != "function":
        message = "`tool_choice` is auto, none, required, a function by its name or allowed_tools."
        raise invalid_request("unsupported_value", message, "tool_choice")
    return {"type": "function", "function": _without_type(choice)}


def _response_format(text: Mapping[str, Any]) -> dict[str, Any]:
    wanted = _object(text, "format", "text.format")
    if wanted.get("type") == "json_schema":
        return {"response_format": {"type": "json_schema", "json_schema": _without_type(wanted)}}
    return {"response_format": wanted} if wanted else {}


def _without_type(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "type" and value is not None}


def _object(body: Mapping[str, Any], name: str, at: str | None = None) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid_request("invalid_type", f"`{at or name}` is an object.", at or name)
    return value


def _string(item: Mapping[str, Any], name: str, at: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid_request("invalid_type", f"A `{item['type']}` has a text `{name}`.", f"{at}.{name}")
    return value


def _serial(response: Mapping[str, Any]) -> str:
    return str(response["id"]).removeprefix("resp_")


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    read, made = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + made,
    }
