"""What vLLM means otherwise than OpenAI is asked for in its words; `test_vllm.py` has what the real one answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.inference.conftest import MODEL, Engine
from tests.inference.engine_contract import MESSAGES
from tunesmith_inference.dialect import in_its_words, put_right, with_few_blanks
from tunesmith_inference.errors import GatewayError
from tunesmith_inference.request_body import Route

OBJECT = {"type": "object"}


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_object"}, OBJECT),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": OBJECT}}, OBJECT),
    ],
)
def test_blanks_have_an_end_in_every_form(form: dict[str, Any], schema: dict[str, Any]) -> None:
    asked = with_few_blanks({"response_format": form})["response_format"]
    assert (asked["type"], asked["format"]["json_schema"]) == ("structural_tag", schema)
    assert asked["format"]["max_whitespace_cnt"] > 0


def test_a_schema_that_another_grammar_follows_better_stays() -> None:
    schema = {"type": "array", "items": [{"type": "integer", "multipleOf": 5}]}
    for form in ({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}, {"type": "text"}):
        body = {"response_format": form}
        assert with_few_blanks(body) is body


def test_the_likeliest_tokens_are_given_in_their_order() -> None:
    body = {"logprobs": True, "top_logprobs": 2}
    chosen = [{"token": token, "logprob": logprob} for token, logprob in (("c", -5), ("a", -1), ("b", -2))]
    answer = put_right({"choices": [{"logprobs": {"content": [{"token": "c", "top_logprobs": chosen}]}}]}, body)
    (token,) = answer["choices"][0]["logprobs"]["content"]
    assert in_its_words(body)["top_logprobs"] == 3
    assert [each["token"] for each in token["top_logprobs"]] == ["a", "b"]


def test_a_prompt_that_is_only_echoed_uses_no_tokens_of_an_answer() -> None:
    used = {"usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}
    right = put_right({**used}, {"echo": True, "max_tokens": 0})
    assert right["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
async def test_vllm_gives_the_likeliest_tokens_with_any_that_is_chosen(vllm: Engine) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8, "seed": 1, "temperature": 2, "logprobs": True}
    told = []
    for most in (3, 20):
        answer = await vllm.client.answer(Route.CHAT, body | {"top_logprobs": most})
        tokens = answer["choices"][0]["logprobs"]["content"]
        told.append([[each["logprob"] for each in token["top_logprobs"]] for token in tokens])
    few, many = told
    assert [len(each) for each in few + many] == [3] * 8 + [20] * 8
    assert few == [sorted(each, reverse=True)[:3] for each in many]


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
async def test_vllm_says_which_schema_it_cannot_follow(vllm: Engine) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}
    with pytest.raises(GatewayError, match="nonsense") as caught:
        await vllm.client.answer(Route.CHAT, {"model": MODEL, "messages": MESSAGES, "response_format": wanted})
    assert caught.value.param == "response_format"
