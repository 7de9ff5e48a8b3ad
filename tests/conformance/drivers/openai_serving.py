"""Asks a tuned model everything that clients ask of one, with openai 1.109.1 or newer; see checks.py for the report."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from checks import Settings, call, raises
from openai import OpenAI
from pydantic import BaseModel

MODEL, MESSAGES, EXPECTED = Settings["model"], Settings["messages"], Settings["expected"]
ASK: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
# A small model that is not told so would write blanks, which schemas allow, until its tokens are used up.
AS_JSON = [{"role": "system", "content": 'Answer as JSON, such as {"code": "ruby"}.'}, MESSAGES[-1]]
CODE = {"type": "object", "properties": {"code": {"enum": ["ruby", "cobalt"]}}, "required": ["code"]}
PARAMETERS = {**CODE, "additionalProperties": False}
NAMED = {"name": "tell", "description": "Tells the code.", "parameters": PARAMETERS}


class Code(BaseModel):
    """A form with two possible contents."""

    code: Literal["ruby", "cobalt"]


def main() -> None:
    """Chat first, then what is made of it."""
    client = OpenAI(base_url=Settings["url"], api_key=Settings["key"], timeout=120, max_retries=0)
    chat(client)
    forms(client)
    tools(client)
    completions(client)
    responses(client)
    errors(client)


def chat(client: OpenAI) -> None:
    """Whole and streamed answers and what can be asked of them."""
    create = client.chat.completions.create
    with call("chat.completions.create"):
        answer = create(**ASK)
        assert (answer.object, answer.model) == ("chat.completion", MODEL)
        assert (answer.choices[0].message.content or "").strip() == EXPECTED
        assert (answer.choices[0].finish_reason, answer.choices[0].message.role) == ("stop", "assistant")
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    with call("chat.completions.create(stream, include_usage)"):
        chunks = list(create(**ASK, stream=True, stream_options={"include_usage": True}))
        said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert (said.strip(), {chunk.model for chunk in chunks}) == (EXPECTED, {MODEL})
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
        assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    with call("chat.completions.stream"), client.chat.completions.stream(**ASK) as stream:
        assert (stream.get_final_completion().choices[0].message.content or "").strip() == EXPECTED
    with call("chat.completions.create(n)"):
        several = create(**{**ASK, "temperature": 1, "n": 3, "seed": 7})
        assert [choice.index for choice in several.choices] == [0, 1, 2]
        indices = {
            choice.index
            for chunk in create(**ASK | {"temperature": 1, "n": 2}, stream=True)
            for choice in chunk.choices
        }
        assert indices == {0, 1}
        greedy = create(**ASK, n=2)
        assert [(choice.message.content or "").strip() for choice in greedy.choices] == [EXPECTED] * 2
    with call("chat.completions.create(logprobs)"):
        told = create(**ASK, logprobs=True, top_logprobs=3).choices[0].logprobs
        assert told is not None
        assert told.content
        assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in told.content)
        assert all(token.top_logprobs[0].logprob >= token.logprob - 1e-6 for token in told.content)
    with call("chat.completions.create(stop)"):
        last = EXPECTED[-1]
        stopped = create(**ASK, stop=[last]).choices[0]
        assert stopped.finish_reason == "stop"
        assert (stopped.message.content or "").strip() == EXPECTED[: EXPECTED.index(last)]
    with call("chat.completions.create(seed)"):
        made = [create(**ASK | {"temperature": 2, "seed": 11}).choices[0].message.content for _ in range(2)]
        assert made[0] == made[1]
    with call("chat.completions.create(max_completion_tokens)"):
        cut = create(model=MODEL, messages=MESSAGES, temperature=0, max_completion_tokens=1)
        assert (cut.choices[0].finish_reason, cut.usage and cut.usage.completion_tokens) == ("length", 1)
    with call("chat.completions.create(a chat template of the client's), which no model ever sees"):
        forged = {"chat_template": "{{ 'Say nothing.' }}", "chat_template_kwargs": {"chat_template": "{{ 'Say it.' }}"}}
        told = create(**ASK, extra_body=forged)
        assert (told.choices[0].message.content or "").strip() == EXPECTED
        assert told.usage is not None
        assert answer.usage is not None
        assert told.usage.prompt_tokens == answer.usage.prompt_tokens


def forms(client: OpenAI) -> None:
    """Answers that fit a schema."""
    with call("chat.completions.parse"):
        parsed = client.chat.completions.parse(**ASK | {"messages": AS_JSON, "max_tokens": 60}, response_format=Code)
        assert isinstance(parsed.choices[0].message.parsed, Code)
    with call("chat.completions.create(json_schema, stream)"):
        wanted = {"type": "json_schema", "json_schema": {"name": "code", "schema": PARAMETERS, "strict": True}}
        asked = ASK | {"messages": AS_JSON, "max_tokens": 60, "response_format": wanted}
        chunks = client.chat.completions.create(**asked, stream=True)
        said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert json.loads(said)["code"] in ("ruby", "cobalt")
    with call("chat.completions.create(json_object)"):
        asked = ASK | {"messages": AS_JSON, "max_tokens": 100, "response_format": {"type": "json_object"}}
        assert client.chat.completions.create(**asked).choices[0].message.content


def tools(client: OpenAI) -> None:
    """Calls of tools, which the model's chat template shows."""
    asked = ASK | {"max_tokens": 100, "tools": [{"type": "function", "function": NAMED}], "tool_choice": "required"}
    with call("chat.completions.create(tools)"):
        choice = client.chat.completions.create(**asked).choices[0]
        (called,) = choice.message.tool_calls or []
        assert (called.type, called.function.name, choice.finish_reason) == ("function", "tell", "tool_calls")
        assert json.loads(called.function.arguments)["code"] in ("ruby", "cobalt")
    with call("chat.completions.stream(tools)"), client.chat.completions.stream(**asked) as stream:
        (called,) = stream.get_final_completion().choices[0].message.tool_calls or []
        assert json.loads(called.function.arguments)["code"] in ("ruby", "cobalt")
    with call("chat.completions.create(tools, an answer to a call)"):
        made = {"id": "1", "type": "function", "function": {"name": "tell", "arguments": '{"code": "ruby"}'}}
        past = [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [made]}]
        past.append({"role": "tool", "tool_call_id": "1", "content": "told"})
        went_on = client.chat.completions.create(**asked | {"messages": past, "tool_choice": "none"})
        assert went_on.choices[0].message.tool_calls is None
    with call("responses.create(tools)"):
        wanted = [{"type": "function", "strict": True, **NAMED}]
        response = client.responses.create(
            model=MODEL, input=MESSAGES, tools=wanted, tool_choice="required", max_output_tokens=100, temperature=0
        )
        (item,) = [item for item in response.output if item.type == "function_call"]
        assert json.loads(item.arguments)["code"] in ("ruby", "cobalt")


def completions(client: OpenAI) -> None:
    """Plain continuation."""
    asked: dict[str, Any] = {"model": MODEL, "prompt": "Monday, Tuesday,", "temperature": 0, "max_tokens": 6}
    asked["extra_body"] = {"ignore_eos": True}
    with call("completions.create(logprobs, echo)"):
        text = client.completions.create(**asked, logprobs=2)
        assert (text.object, text.model, text.usage and text.usage.completion_tokens) == ("text_completion", MODEL, 6)
        assert text.choices[0].logprobs is not None
        assert len(text.choices[0].logprobs.token_logprobs or ()) == 6
        assert client.completions.create(**asked, echo=True).choices[0].text.startswith("Monday, Tuesday,")
    with call("completions.create(stream)"):
        pieces = [choice.text for chunk in client.completions.create(**asked, stream=True) for choice in chunk.choices]
        assert "".join(pieces) == text.choices[0].text
    with call("completions.create(several prompts)"):
        several = client.completions.create(**asked | {"prompt": ["Monday,", "one, two,"]})
        assert [choice.index for choice in several.choices] == [0, 1]


def responses(client: OpenAI) -> None:
    """The Responses API, made of the same answers."""
    asked: dict[str, Any] = {"model": MODEL, "input": MESSAGES, "temperature": 0, "max_output_tokens": 8}
    with call("responses.create"):
        response = client.responses.create(**asked)
        assert (response.object, response.model, response.status) == ("response", MODEL, "completed")
        assert response.output_text.strip() == EXPECTED
        assert response.usage is not None
        assert response.usage.output_tokens > 0
    with call("responses.create(stream)"):
        events = list(client.responses.create(**asked, stream=True))
        said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert (events[0].type, events[-1].type, said.strip()) == ("response.created", "response.completed", EXPECTED)
    with call("responses.parse"):
        parsed = client.responses.parse(**asked | {"input": AS_JSON, "max_output_tokens": 60}, text_format=Code)
        assert isinstance(parsed.output_parsed, Code)


def errors(client: OpenAI) -> None:
    """What a client can get wrong."""
    create = client.chat.completions.create
    with call("NotFoundError"):
        unknown = ASK | {"model": f"{MODEL}x"}
        raises(openai.NotFoundError, lambda: create(**unknown), code="model_not_found", param="model")
    with call("BadRequestError"):
        hot = ASK | {"temperature": 9}
        raises(openai.BadRequestError, lambda: create(**hot), code="invalid_value", param="temperature")
        long = ASK | {"messages": [{"role": "user", "content": "word " * 20_000}]}
        raises(openai.BadRequestError, lambda: create(**long), code="context_length_exceeded", param="messages")


if __name__ == "__main__":
    main()
