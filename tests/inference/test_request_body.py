from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith_inference.errors import GatewayError
from tunesmith_inference.request_body import Route, parse

MESSAGES = [{"role": "user", "content": "hi"}]


def _chat(**changes: Any) -> bytes:
    return json.dumps({"model": "m", "messages": MESSAGES} | changes).encode()


def _schema(**given: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": given}}


def _tools(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name}} for name in names]


def _allowed(mode: str, *names: str) -> dict[str, Any]:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": _tools(*names)}}
    return {"tools": _tools("say", "sing"), "tool_choice": choice}


def test_openai_parameters_and_a_few_of_open_models_pass() -> None:
    wanted = {
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "stop": ["a"],
        "seed": 5,
        "temperature": 0.5,
        "response_format": {"type": "json_object"},
        "tools": [],
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
    }
    asked = parse(Route.CHAT, _chat(**wanted))
    assert asked.parameters == {"model": "m", "messages": MESSAGES} | wanted
    assert (asked.model, asked.stream, asked.usage_wanted) == ("m", False, False)


def test_a_clients_chat_template_never_passes() -> None:
    asked = parse(Route.CHAT, _chat(chat_template="x", chat_template_kwargs={"chat_template": "y", "thinking": False}))
    assert asked.parameters["chat_template_kwargs"] == {"thinking": False}
    assert "chat_template" not in asked.parameters


def test_a_refusal_is_what_the_assistant_said() -> None:
    refused = {"role": "assistant", "content": "", "refusal": "No."}
    answered = {"role": "assistant", "content": "Yes.", "refusal": "No."}
    messages = [refused, refused | {"content": None}, answered, *MESSAGES]
    asked = parse(Route.CHAT, _chat(messages=messages))
    assert [message["content"] for message in asked.parameters["messages"][:3]] == ["No.", "No.", "Yes."]


def test_what_has_no_meaning_here_and_null_is_dropped() -> None:
    asked = parse(Route.CHAT, _chat(user="u", metadata={"a": "b"}, store=True, temperature=None, best_of=1))
    assert set(asked.parameters) == {"model", "messages"}


def test_stream_and_usage_are_understood() -> None:
    asked = parse(Route.CHAT, _chat(stream=True, stream_options={"include_usage": True}))
    assert (asked.stream, asked.usage_wanted) == (True, True)


@pytest.mark.parametrize(
    "name",
    [
        "prompt_logprobs",
        "kv_transfer_params",
        "vllm_xargs",
        "request_id",
        "priority",
        "cache_salt",
        "prompt_embeds",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "structured_outputs",
        "truncate_prompt_tokens",
        "use_beam_search",
        "add_special_tokens",
        "echo",
        "no_such_thing",
    ],
)
def test_everything_else_is_named_and_refused(name: str) -> None:
    assert _refusal(Route.CHAT, _chat(**{name: 1})) == ("unknown_parameter", name)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"model": None}, "missing_required_parameter", "model"),
        ({"model": 5}, "invalid_type", "model"),
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": ["hi"]}, "invalid_type", "messages"),
        ({"messages": [{"content": "hi"}]}, "invalid_type", "messages"),
        ({"messages": [{"role": "human", "content": "hi"}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "invalid_value", "messages"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1"}}]}
                ]
            },
            "invalid_value",
            "messages",
        ),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 129}, "invalid_value", "n"),
        ({"n": True}, "invalid_value", "n"),
        ({"n": "2"}, "invalid_value", "n"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream_options": {}}, "invalid_value", "stream_options"),
        ({"stream": True, "stream_options": []}, "invalid_type", "stream_options"),
        ({"chat_template_kwargs": "x"}, "invalid_type", "chat_template_kwargs"),
        ({"best_of": 3}, "unknown_parameter", "best_of"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "invalid_value", "logit_bias"),
        ({"stop_token_ids": [5] * 65}, "invalid_value", "stop_token_ids"),
        ({"stop": ["a"] * 5}, "invalid_value", "stop"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"top_logprobs": 21, "logprobs": True}, "invalid_value", "top_logprobs"),
        ({"messages": [{"role": "user", "content": None}]}, "invalid_type", "messages.0"),
        ({"tools": {}}, "invalid_type", "tools"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "unsupported_tool", "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "invalid_type", "tools.0.function"),
        ({"response_format": "json"}, "invalid_value", "response_format"),
        ({"response_format": {"type": "song"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "structural_tag"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "missing_required_parameter", "response_format.json_schema"),
        (_schema(name="a"), "missing_required_parameter", "response_format.json_schema.schema"),
        (_schema(name="a", schema=[]), "invalid_type", "response_format.json_schema.schema"),
        (_schema(schema={}), "missing_required_parameter", "response_format.json_schema.name"),
        (_allowed("none", "say"), "invalid_value", "tool_choice.allowed_tools"),
        (_allowed("auto"), "invalid_value", "tool_choice.allowed_tools"),
        (_allowed("auto", "dance"), "invalid_value", "tool_choice.allowed_tools.tools"),
    ],
)
def test_wrong_values_are_refused_with_the_parameter(changes: dict[str, Any], code: str, param: str) -> None:
    assert _refusal(Route.CHAT, _chat(**changes)) == (code, param)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"model": NaN}',
        b'{"model": "\\ud800"}',
        b"\xff\xfe",
        b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "m", "messages": ' + b"[" * 70 + b"]" * 70 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    assert _refusal(Route.CHAT, content) == ("invalid_json", None)


@pytest.mark.parametrize("constant", ["NaN", "-Infinity"])
def test_numbers_that_json_has_not_are_named(constant: str) -> None:
    with pytest.raises(GatewayError, match=f"{constant} is no number"):
        parse(Route.CHAT, b'{"model": %b}' % constant.encode())


def test_of_the_tools_those_that_are_allowed_are_left() -> None:
    asked = parse(Route.CHAT, _chat(**_allowed("required", "sing")))
    assert (asked.parameters["tools"], asked.parameters["tool_choice"]) == (_tools("sing"), "required")


def test_a_share_of_nothing_is_the_likeliest_token() -> None:
    assert parse(Route.CHAT, _chat(top_p=0)).parameters["top_p"] == pytest.approx(0, abs=1e-5)
    assert parse(Route.CHAT, _chat(top_p=0)).parameters["top_p"] > 0


def test_completions_take_a_prompt_in_any_form_and_no_messages() -> None:
    asked = parse(Route.COMPLETIONS, b'{"model": "m", "prompt": [1, 2], "echo": true}')
    assert asked.parameters == {"model": "m", "prompt": [1, 2], "echo": True}
    assert "suffix" not in parse(Route.COMPLETIONS, b'{"model": "m", "prompt": "a", "suffix": ""}').parameters
    assert _refusal(Route.COMPLETIONS, b'{"model": "m", "prompt": []}') == ("invalid_value", "prompt")
    assert _refusal(Route.COMPLETIONS, b'{"model": "m"}') == ("missing_required_parameter", "prompt")
    assert _refusal(Route.COMPLETIONS, b'{"model": "m", "prompt": "a", "messages": []}') == (
        "unknown_parameter",
        "messages",
    )


def _refusal(route: Route, content: bytes) -> tuple[str, str | None]:
    with pytest.raises(GatewayError) as caught:
        parse(route, content)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param
