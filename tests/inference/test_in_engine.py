"""What real vLLM does with our modules in it: calls of tools, and seeds. `test_vllm.py` has that arguments fit."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.inference.conftest import MODEL, Engine
from tests.inference.engine_contract import CALL
from tunesmith_inference.request_body import Route


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("function", [{"name": "say"}, {"name": "say", "parameters": {}}])
async def test_vllm_calls_a_tool_without_parameters_without_arguments(vllm: Engine, function: dict[str, Any]) -> None:
    answer = await vllm.client.answer(Route.CHAT, CALL | {"tools": [{"type": "function", "function": function}]})
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {}


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
async def test_vllm_tells_a_call_that_is_cut_as_a_call(vllm: Engine) -> None:
    made = (await vllm.client.answer(Route.CHAT, CALL | {"temperature": 0}))["usage"]["completion_tokens"]
    (choice,) = (await vllm.client.answer(Route.CHAT, CALL | {"temperature": 0, "max_tokens": made - 12}))["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", None)
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "say"


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="session")
async def test_vllm_draws_by_the_seed_also_where_prompts_are_computed_in_parts(vllm: Engine) -> None:
    """Together they are more than a step's 2,048 tokens, so that some are cut; without us that ends the engine."""

    async def ask(place: int) -> str:
        prompt = [3 + (place * 7 + at) % 200 for at in range(450)]
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 1.0, "seed": place}
        answer = await vllm.client.answer(Route.COMPLETIONS, body)
        text: str = answer["choices"][0]["text"]
        return text

    together = await asyncio.gather(*map(ask, range(16)))
    assert together == [await ask(place) for place in range(16)]
    assert len(set(together)) > 1
