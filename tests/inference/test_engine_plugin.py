"""Calls of tools by real vLLM with the plugin; `test_vllm.py` has that their arguments fit a schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.inference.conftest import Engine
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
