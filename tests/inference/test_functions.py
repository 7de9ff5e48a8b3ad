"""Chats with functions, as clients of before tools send them, are asked in today's form and answered in theirs."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.inference.gateway import BASE, answer, gateway_on_simulator
from tunesmith_inference.errors import GatewayError
from tunesmith_inference.functions import with_function_calls, with_tools

SAY = {"name": "say", "parameters": {"type": "object", "properties": {"said": {"type": "string"}}}}
CALL = {"name": "say", "arguments": "{}"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("auto", "auto"), ("none", "none"), ({"name": "say"}, {"type": "function", "function": {"name": "say"}})],
)
def test_functions_become_tools(choice: object, expected: object) -> None:
    body, former = with_tools({"messages": [], "functions": [SAY], "function_call": choice})
    tools = [{"type": "function", "function": SAY}]

    assert former
    assert body == {"messages": [], "tools": tools, "tool_choice": expected, "parallel_tool_calls": False}


def test_calls_and_their_answers_become_those_of_tools_also_without_functions() -> None:
    asked = {"role": "user", "content": "one"}
    turns = [asked, {"role": "assistant", "content": None, "function_call": CALL}]
    turns.append({"role": "function", "name": "say", "content": "done"})
    body, former = with_tools({"messages": turns})

    assert not former
    assert body["messages"] == [
        asked,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call00001", "type": "function", "function": CALL}],
        },
        {"role": "tool", "tool_call_id": "call00001", "name": "say", "content": "done"},
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"functions": {}}, "functions"),
        ({"functions": ["say"]}, "functions"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "functions"),
        ({"functions": [SAY], "function_call": "required"}, "function_call"),
        ({"functions": [SAY], "function_call": 1}, "function_call"),
        ({"functions": [SAY], "tools": []}, "tools"),
        ({"functions": [SAY], "tool_choice": "auto"}, "tool_choice"),
    ],
)
def test_what_is_no_function_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError) as refused:
        with_tools(body)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_of_several_calls_the_first_is_given() -> None:
    calls = [{"id": "a", "type": "function", "function": CALL}, {"id": "b", "function": {"name": "other"}}]
    whole = with_function_calls(
        {"choices": [{"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}]}
    )
    assert whole == {
        "choices": [{"message": {"content": None, "function_call": CALL}, "finish_reason": "function_call"}]
    }
    second = {"choices": [{"delta": {"tool_calls": [{"index": 1, "function": {"arguments": "{"}}]}}]}
    assert with_function_calls(second) == {"choices": [{"delta": {}}]}


async def test_the_official_client_calls_functions_as_before(tmp_path: Path) -> None:
    ask: dict[str, Any] = {
        "model": BASE,
        "messages": [{"role": "user", "content": "one two"}],
        "max_tokens": 3,
        "functions": [SAY],
        "function_call": {"name": "say"},
    }
    template = "{% if tools %}<tool_call></tool_call>{% endif %}"
    async with gateway_on_simulator(tmp_path, template=template) as gateway:
        url = str(gateway.http.base_url.join("/v1"))
        async with openai.AsyncOpenAI(api_key="key-1", base_url=url, max_retries=0) as client:
            whole = (await client.chat.completions.create(**ask)).choices[0]
            deltas = [chunk.choices[0] async for chunk in await client.chat.completions.create(**ask, stream=True)]
    calls = [one.delta.function_call for one in deltas if one.delta.function_call]
    arguments = "".join(call.arguments or "" for call in calls)

    assert whole.message.function_call is not None
    assert whole.message.tool_calls is None
    assert (whole.message.function_call.name, [call.name for call in calls if call.name]) == ("say", ["say"])
    assert (
        json.loads(whole.message.function_call.arguments) == {"said": answer("", "one two", 3)} == json.loads(arguments)
    )
    assert {whole.finish_reason, deltas[-1].finish_reason} <= {"function_call", "stop"}
