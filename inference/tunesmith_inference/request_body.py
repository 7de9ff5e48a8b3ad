"""Owns what of a client's request body reaches an engine: one list of parameters that pass; all else is answered.

It must not know HTTP or engines; everything here is pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Never

from tunesmith_inference import functions, responses
from tunesmith_inference.errors import invalid_request, missing_parameter, unknown_parameter
from tunesmith_inference.parameter_checks import check_values


class Route(StrEnum):
    """The inference routes. Responses are made of chat completions; the others have the same path in the engine."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    RESPONSES = "/v1/responses"


_BOTH = frozenset(
    [
        "model",
        "stream",
        "stream_options",
        "stop",
        "n",
        "seed",
        "logprobs",
        "logit_bias",
        "temperature",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "max_tokens",
        "response_format",
    ]
)
_OPEN_WEIGHTS = frozenset(["top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"])
"""Not OpenAI's, but what clients of open models send and what cannot do harm."""
_PASSED = {
    Route.CHAT: _BOTH
    | _OPEN_WEIGHTS
    | frozenset(
        [
            "messages",
            "top_logprobs",
            "max_completion_tokens",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "reasoning_effort",
            "chat_template_kwargs",
        ]
    ),
    Route.COMPLETIONS: _BOTH | _OPEN_WEIGHTS | frozenset(["prompt", "echo", "suffix"]),
}
_IGNORED = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "verbosity",
        "modalities",
        "chat_template",
    ]
)
"""Known to clients, without meaning to engines. A chat template is the model's own, never the client's."""
_CONTENT = {Route.CHAT: "messages", Route.COMPLETIONS: "prompt"}
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""A template would write any other one, too, and no model has seen that."""
_LEAST_TOP_P = 1e-6
"""The likeliest token alone. To engines 0 is no share, whereas OpenAI takes it."""
_MAX_ANSWERS = 128
_MAX_DEPTH = 64
_MOST = {"logit_bias": 1024, "stop_token_ids": 64}
"""Entries of parameters that would end the engine on a GPU where they have more (vLLM's sample/logit_bias.py)."""


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A checked request. `parameters` go to the engine's `route`; `model` is still the client's name.

    `response_to` is the body where a response of the Responses API is to be made of the answer; `functions` where calls
    of tools are to be called what they were before there were tools.
    """

    route: Route
    model: str
    stream: bool
    usage_wanted: bool
    parameters: Mapping[str, Any]
    response_to: Mapping[str, Any] | None = None
    functions: bool = False
    end_user: str | None = None
    """Who the client asks for, where it says so: a deployment gives one end user one model."""
    stored: bool = True
    """False where the client asks that it be not."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def tools_at(self) -> str | None:
        """The parameter that has tools or calls of tools in it; None where there are none."""
        if self.parameters.get("tools"):
            return "functions" if self.functions else "tools"
        calls = any(message.get("tool_calls") for message in self.parameters.get("messages", ()))
        return "messages" if calls else None


def parse(route: Route, content: bytes) -> InferenceRequest:
    """Checks a body; raises 400 with the parameter at fault."""
    body = {name: value for name, value in _json_object(content).items() if value is not None}
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise (
            missing_parameter("model")
            if model is None
            else invalid_request("invalid_type", "`model` is a name.", "model")
        )
    if route is Route.RESPONSES:
        return _parse_response(model, body)
    if _CONTENT[route] not in body:
        raise missing_parameter(_CONTENT[route])
    has_functions = False
    if route is Route.CHAT:
        body, has_functions = functions.with_tools(body)
    parameters = {name: value for name, value in body.items() if _passes(route, name, value)}
    _check_values(route, parameters)
    options = parameters.get("stream_options") or {}
    stream = parameters.get("stream", False)
    wanted = options.get("include_usage") is True
    return InferenceRequest(route, model, stream, wanted, parameters, functions=has_functions, **_about(body))


def _parse_response(model: str, body: dict[str, Any]) -> InferenceRequest:
    parameters = responses.chat_parameters(body, _OPEN_WEIGHTS)
    _check_values(Route.CHAT, parameters)
    stream = parameters.get("stream", False)
    return InferenceRequest(Route.CHAT, model, stream, True, parameters, response_to=body, **_about(body))


def _about(body: Mapping[str, Any]) -> dict[str, Any]:
    """What engines do not hear of."""
    named = body.get("safety_identifier") or body.get("user")
    return {
        "end_user": named if isinstance(named, str) else None,
        "stored": body.get("store") is not False,
        "metadata": _metadata(body.get("metadata")),
    }


def _metadata(given: object) -> dict[str, str]:
    """As far as it is what OpenAI's clients send: the rest of it has no meaning here, and fails no request."""
    pairs = given.items() if isinstance(given, dict) else ()
    fitting = [
        (key, value)
        for key, value in pairs
        if isinstance(value, str) and 1 <= len(key) <= 64 and len(value) <= 512 and "\x00" not in key + value
    ]
    return dict(fitting[:16])


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content, parse_constant=_refuse_constant)
        # Half a surrogate pair is valid JSON and not valid text.
        json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is not text that UTF-8 can hold"
        raise invalid_request("invalid_json", f"The body is not valid JSON: {reason}.") from None
    if not isinstance(body, dict):
        raise invalid_request("invalid_json", "Send a JSON object.")
    if _depth(body) > _MAX_DEPTH:
        raise invalid_request("invalid_json", f"The body is nested deeper than {_MAX_DEPTH} levels.")
    return body


def _passes(route: Route, name: str, value: object) -> bool:
    if (name, value) in (("best_of", 1), ("suffix", "")):
        return False
    if name in _PASSED[route]:
        return True
    if name in _IGNORED:
        return False
    raise unknown_parameter(name)


def _check_values(route: Route, parameters: dict[str, Any]) -> None:
    """What decides how the gateway itself acts, and what engines refuse in riddles; the engine checks the rest."""
    check_values(parameters)
    _leave_allowed_tools(parameters)
    for name, kind in (("stream", bool), ("stream_options", dict), ("chat_template_kwargs", dict), ("messages", list)):
        if name in parameters and not isinstance(parameters[name], kind):
            raise invalid_request("invalid_type", f"`{name}` has the wrong type.", name)
    if route is Route.CHAT and not parameters["messages"]:
        raise invalid_request("invalid_value", "Send at least one message.", "messages")
    answers = parameters.get("n", 1)
    if isinstance(answers, bool) or not isinstance(answers, int) or not 1 <= answers <= _MAX_ANSWERS:
        raise invalid_request("invalid_value", f"`n` is a number from 1 to {_MAX_ANSWERS}.", "n")
    for name, most in _MOST.items():
        given = parameters.get(name)
        if isinstance(given, (dict, list)) and len(given) > most:
            raise invalid_request("invalid_value", f"`{name}` has at most {most} entries.", name)
    if parameters.get("top_p") == 0:
        parameters["top_p"] = _LEAST_TOP_P
    if "stream_options" in parameters and not parameters.get("stream"):
        raise invalid_request("invalid_value", "`stream_options` goes only with `stream`.", "stream_options")
    if "chat_template_kwargs" in parameters:
        given = parameters["chat_template_kwargs"]
        parameters["chat_template_kwargs"] = {key: value for key, value in given.items() if key != "chat_template"}
    for place, message in enumerate(parameters.get("messages", ())):
        _check_message(message, place)
    if route is Route.CHAT:
        parameters["messages"] = [_with_refusal(message) for message in parameters["messages"]]


def _leave_allowed_tools(parameters: dict[str, Any]) -> None:
    """Of the tools those that the choice allows: the model would call others if it were shown them."""
    choice = parameters.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return
    match choice.get("allowed_tools"):
        case {"mode": "auto" | "required" as mode, "tools": [_, *_] as allowed}:
            tools = [
                tool
                for tool in parameters.get("tools", ())
                if any(isinstance(one, dict) and _name(one) == _name(tool) for one in allowed)
            ]
        case _:
            message = '`allowed_tools` has a `mode`, "auto" or "required", and at least one of `tools`.'
            raise invalid_request("invalid_value", message, "tool_choice.allowed_tools")
    if len(tools) != len(allowed):
        message = "Every allowed tool is named by its `function`, once, and is one of `tools`."
        raise invalid_request("invalid_value", message, "tool_choice.allowed_tools.tools")
    parameters["tools"], parameters["tool_choice"] = tools, mode


def _name(tool: Mapping[str, Any]) -> object:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else None


def _check_message(message: object, place: int) -> None:
    """Text only: engines would fetch other content from addresses that the client names."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise invalid_request("invalid_type", "Every message is an object with a `role`.", "messages")
    if message["role"] not in _ROLES:
        raise invalid_request("invalid_value", f"The role of a message is one of {', '.join(_ROLES)}.", "messages")
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    is_text = all(isinstance(part, dict) and part.get("type") in ("text", "refusal") for part in parts)
    if not is_text or not isinstance(content, (str, list, type(None))):
        raise invalid_request("invalid_value", "Message content must be text.", "messages")
    if content is None and message["role"] != "assistant":
        raise invalid_request("invalid_type", "Only an assistant's message goes without content.", f"messages.{place}")


def _with_refusal(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose refusal is what it says, as it is to the trainer: engines pass over it."""
    content, refusal = message.get("content"), message.get("refusal")
    is_empty = content is None or (isinstance(content, str) and not content.strip())
    return {**message, "content": refusal} if is_empty and isinstance(refusal, str) else message


def _refuse_constant(constant: str) -> Never:
    raise invalid_request("invalid_json", f"The body is not valid JSON: {constant} is no number there.")


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return depth
