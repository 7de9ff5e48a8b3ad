"""The grader routes: what the official client gets, and what nothing that a user sends can do."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from tests.server.graders.gateway import CHAT, Gateway, authenticator_of, client_of, proxy_to
from tests.server.graders.graders import BOTH, CLOSE, EXACT, JUDGE, SERVER_ERROR, flagged
from tests.support.asgi_server import serving
from tests.support.loopback_http import Answer
from tunesmith_server.core import Core
from tunesmith_server.graders import similarity
from tunesmith_server.graders.endpoints import create_router
from tunesmith_server.graders.service import GradersService
from tunesmith_server.http_app import create_http_app
from tunesmith_server.inference_proxy import InferenceProxy

ROUTE = "/v1/fine_tuning/alpha/graders"


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
async def app(core: Core, gateway: Gateway) -> AsyncIterator[FastAPI]:
    service = GradersService()
    async with proxy_to(gateway) as proxy:
        yield create_http_app(core, authenticator_of(core), [create_router(service, proxy)])
    service.close()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as made:
        yield made


async def run(client: httpx.AsyncClient, grader: dict[str, Any], sample: str = "Paris", **item: Any) -> dict[str, Any]:
    body = {"grader": grader, "model_sample": sample, "item": item or {"answer": "Paris"}}
    answer = await client.post(f"{ROUTE}/run", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def refused(client: httpx.AsyncClient, grader: dict[str, Any], verb: str = "validate") -> tuple[str, str]:
    body = {"grader": grader} | ({"model_sample": "x"} if verb == "run" else {})
    answer = await client.post(f"{ROUTE}/{verb}", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["code"], error["param"]


async def test_the_official_client_validates_and_runs(app: FastAPI) -> None:
    async with (
        serving(app) as url,
        openai.AsyncOpenAI(api_key="mine", base_url=f"{url}/v1", max_retries=0) as client,
    ):
        graders = client.fine_tuning.alpha.graders
        validated = await graders.validate(grader=BOTH)  # type: ignore[arg-type]  # its type knows one inner grader
        result = await graders.run(grader=EXACT, model_sample="Paris", item={"answer": "Paris"})  # type: ignore[arg-type]

    assert validated.grader is not None
    assert validated.grader.to_dict() == BOTH
    assert (result.reward, result.sub_rewards, result.metadata.name) == (1.0, {}, "exact")
    assert result.metadata.errors.api_model_grader_parse_error is False
    assert result.metadata.execution_time >= 0


async def test_the_result_has_every_key_of_the_wire(client: httpx.AsyncClient) -> None:
    result = await run(client, EXACT)

    assert set(result) == {"reward", "metadata", "sub_rewards", "model_grader_token_usage_per_model"}
    assert set(result["metadata"]) == {
        "name",
        "type",
        "errors",
        "execution_time",
        "scores",
        "token_usage",
        "sampled_model_name",
    }
    assert len(result["metadata"]["errors"]) == 14


async def test_a_formula_joins_graders(client: httpx.AsyncClient, gateway: Gateway) -> None:
    result = await run(client, BOTH, "Paris, France")

    rewards = {"exact": 0.0, "close": pytest.approx(2 / 3), "judge": 0.5}
    assert result["sub_rewards"] == result["metadata"]["scores"] == rewards
    assert result["reward"] == pytest.approx(2 / 3 / 4 + 0.125)
    assert (result["metadata"]["type"], result["metadata"]["token_usage"]) == ("multi", 7)
    assert result["model_grader_token_usage_per_model"] == {"judge-1": 7}


async def test_a_model_is_asked_in_the_callers_name(client: httpx.AsyncClient, gateway: Gateway) -> None:
    sampling = {"temperature": 0.0, "seed": 3, "max_completions_tokens": 9}
    gateway.answers = ['{"result": 4}']

    result = await run(client, JUDGE | {"range": [1, 5], "sampling_params": sampling})

    [asked] = gateway.asked
    assert (asked.path, asked.headers["authorization"]) == (CHAT, "Bearer mine")
    assert asked.json["messages"] == [{"role": "system", "content": "Grade: Paris against Paris"}]
    assert (asked.json["temperature"], asked.json["seed"], asked.json["max_completion_tokens"]) == (0.0, 3, 9)
    assert asked.json["response_format"]["type"] == "json_schema"
    assert result["reward"] == 4
    assert (result["metadata"]["token_usage"], result["metadata"]["sampled_model_name"]) == (7, "judge-1")


async def test_messages_may_have_parts(client: httpx.AsyncClient, gateway: Gateway) -> None:
    parts = [{"type": "input_text", "text": "Wanted: {{item.answer}}"}, "Said: {{sample.output_text}}"]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts[0]}]

    await run(client, JUDGE | {"input": messages}, "Rome")

    assert gateway.asked[0].json["messages"] == [
        {"role": "user", "content": "Wanted: Paris\nSaid: Rome"},
        {"role": "assistant", "content": "Wanted: Paris"},
    ]


async def test_a_gateway_that_fails_is_a_flag(client: httpx.AsyncClient, gateway: Gateway) -> None:
    gateway.answers = [Answer(500, b"broken"), Answer(200, b"x" * (5 << 20)), None]

    for _ in range(3):
        result = await run(client, JUDGE)
        assert (result["reward"], flagged(result["metadata"]["errors"])) == (0.0, SERVER_ERROR)


async def test_a_model_that_the_caller_has_not_is_not_found(client: httpx.AsyncClient, gateway: Gateway) -> None:
    gateway.answers = [Answer(404, b'{"error": {"code": "model_not_found"}}')]

    judge = JUDGE | {"input": [{"role": "user", "content": "Grade this."}]}
    for grader in (judge, BOTH | {"graders": {"judge": judge}, "calculate_output": "judge"}):
        assert await refused(client, grader, "run") == ("model_not_found", "grader.model")


async def test_without_inference_other_graders_work(core: Core) -> None:
    proxy = InferenceProxy("", reason_for_none="Inference is off.")
    service = GradersService()
    app = create_http_app(core, authenticator_of(core), [create_router(service, proxy)])
    async with client_of(app) as client:
        assert (await run(client, EXACT))["reward"] == 1.0
        for grader in (JUDGE, BOTH):
            body = {"grader": grader, "model_sample": "x", "item": {"answer": "y"}}
            answer = await client.post(f"{ROUTE}/run", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "inference_disabled")
    service.close()
    await proxy.close()


async def test_what_could_never_give_a_reward_is_not_valid(client: httpx.AsyncClient) -> None:
    # One app for all of them: each takes longer to make than to ask.
    cases: list[tuple[dict[str, Any], str, str]] = [
        (EXACT | {"reference": "{{secret.key}}"}, "invalid_template_variable", "grader"),
        (BOTH | {"calculate_output": "exact +"}, "invalid_formula", "grader.calculate_output"),
        (BOTH | {"calculate_output": "exact + unknown"}, "invalid_formula", "grader.calculate_output"),
        (BOTH | {"graders": {"inner": BOTH}}, "invalid_value", "grader.graders.inner.type"),
        (BOTH | {"graders": {}}, "invalid_value", "grader.graders"),
        (EXACT | {"operation": "regex"}, "invalid_value", "grader.operation"),
        (EXACT | {"extra": 1}, "unknown_parameter", "grader.extra"),
        ({"type": "magic"}, "invalid_value", "grader.type"),
        (JUDGE | {"range": [1, 1]}, "invalid_value", "grader.range"),
        (JUDGE | {"input": []}, "invalid_value", "grader.input"),
    ]
    for grader, code, param in cases:
        assert await refused(client, grader) == (code, param), grader


async def test_half_characters_and_deep_items_are_answered(client: httpx.AsyncClient) -> None:
    def body(grader: dict[str, Any], sample: str, answer: str) -> str:
        return f'{{"grader": {json.dumps(grader)}, "model_sample": "{sample}", "item": {{"answer": {answer}}}}}'

    half = "\\ud800"
    deep = '{"x":' * 500 + "1" + "}" * 500
    bodies = [
        body(EXACT, half, '"x"'),
        body(EXACT, "x", f'"{half}"'),
        body(JUDGE, "x", f'"{half}"'),
        body(EXACT, "x", deep),
        body(EXACT | {"name": "\ud800"}, "x", '"x"'),
    ]
    answers = [
        await client.post(f"{ROUTE}/run", content=body, headers={"content-type": "application/json"}) for body in bodies
    ]

    assert [answer.status_code for answer in answers] == [400, 200, 200, 200, 400]


async def test_long_work_leaves_the_server_answering(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    monkeypatch.setitem(similarity.METRICS, "meteor", lambda text, reference: float(answered.wait(60)))
    grading = asyncio.create_task(run(client, CLOSE | {"evaluation_metric": "meteor"}))
    for _ in range(3):
        assert (await run(client, EXACT))["reward"] == 1.0
    answered.set()
    assert (await grading)["reward"] == 1.0


async def test_it_needs_a_key(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{ROUTE}/validate", json={"grader": EXACT}, headers={"authorization": "Bearer x"})

    assert answer.status_code == 401
