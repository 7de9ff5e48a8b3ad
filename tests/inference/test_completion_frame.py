"""Prompts of legacy completions reach a model as it has learnt them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.inference.gateway import BASE, GatewayUnderTest, answer, gateway_on_simulator, golden
from tests.support import engine_answers
from tunesmith_inference.completion_frame import CompletionFrame

ADAPTER, FULL, CHAT = (f"ft:tiny:p1:{name}:12345678" for name in ("pairs", "whole", "chat"))
FRAME = {"before": "user: ", "after": " assistant:", "trimmed": False}


def framed_golden(weights: str) -> bytes:
    return json.dumps({**json.loads(golden(weights)), "completion_frame": FRAME}).encode()


@pytest.mark.parametrize(
    ("prompt", "trimmed", "expected"),
    [
        (" a ", False, "<u> a <a>"),
        (" a ", True, "<u>a<a>"),
        (["a", " b"], False, ["<u>a<a>", "<u> b<a>"]),
    ],
)
def test_texts_are_framed_and_begin_with_nothing_else(prompt: object, *, trimmed: bool, expected: object) -> None:
    frame = CompletionFrame(before="<u>", after="<a>", trimmed=trimmed)
    framed = frame.around({"prompt": prompt, "max_tokens": 4})
    assert framed == {"prompt": expected, "max_tokens": 4, "add_special_tokens": False}


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3]], [], 5, True, {"a": 1}])
def test_tokens_and_what_is_no_prompt_stay_as_they_are(prompt: object) -> None:
    assert CompletionFrame(before="<u>", after="<a>", trimmed=False).around({"prompt": prompt}) == {"prompt": prompt}


async def test_models_of_prompts_and_completions_are_asked_as_they_were_taught(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        gateway.add_adapter(ADAPTER, "pairs", files={"golden.json": framed_golden("pairs")})
        gateway.add_adapter(CHAT, "chat")
        gateway.add_full(FULL, "whole", **{"golden.json": framed_golden("whole")})
        for model, weights in ((ADAPTER, "pairs"), (FULL, "whole")):
            assert await completions(gateway, model, ["one two", "three"]) == [
                answer(weights, "user: one two assistant:", 4),
                answer(weights, "user: three assistant:", 4),
            ]
            (choice,) = (await gateway.chat(model, "one two", max_tokens=4)).json()["choices"]
            assert choice["message"]["content"] == answer(weights, "one two", 4)
        tokens = engine_answers.tokenized("one two")
        assert await completions(gateway, ADAPTER, tokens) == [answer("pairs", "one two", 4)]
        assert await completions(gateway, CHAT, "one two") == [answer("chat", "one two", 4)]
        assert await completions(gateway, BASE, "one two") == [answer("", "one two", 4)]


async def completions(gateway: GatewayUnderTest, model: str, prompt: object) -> list[str]:
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": 4}
    response = await gateway.http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]
