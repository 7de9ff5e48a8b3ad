"""The Responses API through the official client, against a gateway on simulated engines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

from tests.inference.gateway import BASE, GatewayUnderTest, answer, gateway_on_simulator

SHOWS_TOOLS = "{% if tools %}<tool_call></tool_call>{% endif %}"
TOOL: Any = {
    "type": "function",
    "name": "say",
    "parameters": {"type": "object", "properties": {"said": {"type": "string"}}},
    "strict": None,
}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayUnderTest]:
    async with gateway_on_simulator(tmp_path_factory.mktemp("cache"), template=SHOWS_TOOLS) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway: GatewayUnderTest) -> AsyncIterator[openai.AsyncOpenAI]:
    url = str(gateway.http.base_url.join("/v1"))
    async with openai.AsyncOpenAI(api_key="key-1", base_url=url, max_retries=0) as made:
        yield made


async def test_a_text_is_answered(client: openai.AsyncOpenAI) -> None:
    response = await client.responses.create(
        model=BASE, input="one two", instructions="be", max_output_tokens=4, store=True
    )
    assert response.output_text == answer("", "be one two", 4)
    assert (response.model, response.status) == (BASE, "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (3, 4, 7)
    assert response.model_dump()["store"] is False


async def test_a_stream_tells_the_same_in_typed_events(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model=BASE, input="one two", max_output_tokens=3) as stream:
        events: list[Any] = [event async for event in stream]
    response = events[-1].response
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert response.output[0].content[0].text.split() == answer("", "one two", 3).split()


async def test_a_conversation_with_calls_is_understood(client: openai.AsyncOpenAI) -> None:
    conversation: list[Any] = [
        {"role": "developer", "content": "be"},
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {"type": "function_call", "call_id": "c1", "name": "say", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "two"},
    ]
    response = await client.responses.create(model=BASE, input=conversation, tools=[TOOL], max_output_tokens=2)
    assert response.output_text == answer("", "be one  two", 2)


async def test_a_tool_is_called_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    ask: dict[str, Any] = {
        "model": BASE,
        "input": "one two",
        "tools": [TOOL],
        "tool_choice": "required",
        "max_output_tokens": 3,
    }
    whole = await client.responses.create(**ask)
    async with client.responses.stream(**ask) as stream:
        kinds = [event.type async for event in stream]
        gathered = await stream.get_final_response()
    for response in (whole, gathered):
        (call,) = response.output
        assert isinstance(call, ResponseFunctionToolCall)
        assert (call.name, response.status) == ("say", "completed")
        assert json.loads(call.arguments) == {"said": answer("", "one two", 3)}
    assert "response.function_call_arguments.delta" in kinds
    assert "response.function_call_arguments.done" in kinds


async def test_only_allowed_tools_are_called(client: openai.AsyncOpenAI) -> None:
    choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "say"}]}
    ask: dict[str, Any] = {"model": BASE, "input": "one", "tools": [{**TOOL, "name": "sing"}, TOOL]}
    response = await client.responses.create(**ask, tool_choice=choice)
    (call,) = response.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert call.name == "say"


async def test_what_a_response_says_of_itself_may_be_sent_again(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model=BASE, input="one", max_output_tokens=2)
    echoed: dict[str, Any] = first.model_dump(include={"tools", "tool_choice", "text", "parallel_tool_calls", "top_p"})
    assert (echoed["tools"], echoed["tool_choice"]) == ([], "auto")
    again = await client.responses.create(model=BASE, input="one", max_output_tokens=2, **echoed)
    assert again.output_text == first.output_text


async def test_an_answer_of_a_given_form_is_asked_for(client: openai.AsyncOpenAI) -> None:
    class Said(BaseModel):
        said: str

    response = await client.responses.parse(model=BASE, input="one two", text_format=Said, max_output_tokens=3)
    assert response.output_parsed == Said(said=answer("", "one two", 3))


async def test_an_engine_that_dies_ends_the_stream_with_an_error(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model=BASE, input="fault:die", max_output_tokens=9, stream=True)
    with pytest.raises(openai.APIError, match="engine"):
        _ = [event async for event in stream]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"input": None}, "missing_required_parameter", "input"),
        ({"input": []}, "invalid_type", "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "invalid_value", None),
        ({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id"),
        ({"background": True}, "unsupported_value", "background"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_tool", "tools.0.type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a"}}},
            "missing_required_parameter",
            "text.format.schema",
        ),
        ({"temperature": 9}, "invalid_value", "temperature"),
        ({"text": ""}, "invalid_type", "text"),
        ({"input": [{"role": ["user"], "content": "a"}]}, "invalid_value", None),
        ({"reasoning": []}, "invalid_type", "reasoning"),
        ({"max_output_tokens": 100_000}, "context_length_exceeded", "max_output_tokens"),
        ({"nonsense": 1}, "unknown_parameter", "nonsense"),
        ({"include": ["message.output_text.logprobs"]}, "unsupported_value", "include"),
        ({"model": "ft:tiny:p2:other:1"}, "model_not_found", "model"),
    ],
)
async def test_refusals_name_the_parameter(
    gateway: GatewayUnderTest, changes: dict[str, Any], code: str, param: str | None
) -> None:
    response = await gateway.http.post("/v1/responses", json={"model": BASE, "input": "one", **changes})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404 if code == "model_not_found" else 400, code)
    assert param is None or error["param"] == param
