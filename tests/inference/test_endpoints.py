"""The gateway's answers, over a real socket; the engines behind it are simulators."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from tests.inference.gateway import BASE, GatewayUnderTest, answer, gateway_on_simulator, until

MINE = "ft:tiny:p1:mine:12345678"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayUnderTest]:
    async with gateway_on_simulator(tmp_path_factory.mktemp("cache"), max_body_bytes=200_000) as running:
        running.add_adapter(MINE, "tuned")
        await running.chat(MINE)
        yield running


async def test_each_model_answers_under_the_name_the_client_sent(gateway: GatewayUnderTest) -> None:
    for model, weights in ((BASE, ""), (MINE, "tuned")):
        response = await gateway.chat(model, "one two", max_tokens=4)
        assert response.status_code == 200
        body = response.json()
        assert body["model"] == model
        assert body["choices"][0]["message"]["content"] == answer(weights, "one two", 4)
        used = {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
        assert used.items() <= body["usage"].items()
        assert "r-" not in response.text


async def test_completions_answer_too(gateway: GatewayUnderTest) -> None:
    response = await gateway.http.post("/v1/completions", json={"model": MINE, "prompt": "one two", "n": 2})
    texts = [choice["text"] for choice in response.json()["choices"]]
    assert texts == [answer("tuned", "one two", 16)] * 2


async def test_tools_are_called_where_the_template_shows_them(tmp_path: Path) -> None:
    function = {"name": "say", "parameters": {"type": "object", "properties": {"said": {"type": "string"}}}}
    ask: dict[str, Any] = {
        "model": BASE,
        "messages": [{"role": "user", "content": "one two"}],
        "max_tokens": 3,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
    }
    template = "{% if tools %}<tool_call></tool_call>{% endif %}"
    async with gateway_on_simulator(tmp_path, template=template) as gateway:
        url = str(gateway.http.base_url.join("/v1"))
        async with openai.AsyncOpenAI(api_key="key-1", base_url=url, max_retries=0) as client:
            whole = await client.chat.completions.create(**ask)
            async with client.chat.completions.stream(**ask) as stream:
                gathered = await stream.get_final_completion()
    for completion in (whole, gathered):
        (call,) = completion.choices[0].message.tool_calls or []
        assert call.function.name == "say"
        assert json.loads(call.function.arguments) == {"said": answer("", "one two", 3)}
        assert completion.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.content is None


async def test_tools_are_refused_where_the_model_would_never_hear_of_them(gateway: GatewayUnderTest) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]}
    say = {"name": "say"}
    tools = [{"type": "function", "function": say}]
    asked: dict[str, Any] = {"tools": tools, "functions": [say], "messages": [called]}
    for at, value in asked.items():
        response = await gateway.chat(BASE, **{at: value})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "tools_unsupported", at)


async def test_the_official_client_works_unmodified(gateway: GatewayUnderTest) -> None:
    async with openai.AsyncOpenAI(
        api_key="key-1", base_url=str(gateway.http.base_url.join("/v1")), max_retries=0
    ) as client:
        messages: list[Any] = [{"role": "user", "content": "one two"}]
        whole = await client.chat.completions.create(model=MINE, messages=messages, max_tokens=3)
        assert whole.choices[0].message.content == answer("tuned", "one two", 3)
        stream = await client.chat.completions.create(model=MINE, messages=messages, max_tokens=3, stream=True)
        chunks = [chunk async for chunk in stream]
        assert {chunk.model for chunk in chunks} == {MINE}
        assert all(chunk.usage is None for chunk in chunks)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text.strip() == answer("tuned", "one two", 3)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="nothing", messages=messages)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_usage_comes_last_in_a_stream_where_asked_for(gateway: GatewayUnderTest) -> None:
    response = await gateway.chat(MINE, max_tokens=2, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    usage = json.loads(events[-2])["usage"]
    assert usage["completion_tokens"] == 2
    assert (
        usage["prompt_tokens_details"]["cached_tokens"] == usage["completion_tokens_details"]["reasoning_tokens"] == 0
    )


async def test_every_answer_has_a_request_id(gateway: GatewayUnderTest) -> None:
    assert (await gateway.chat(BASE)).headers["x-request-id"].startswith("req_")
    sent = await gateway.http.get("/health", headers={"x-request-id": "mine-1"})
    assert sent.headers["x-request-id"] == "mine-1"
    forged = await gateway.http.get("/nothing", headers={"x-request-id": "a b"})
    assert forged.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("key", ["", "Bearer nobody", "Basic key-1"])
async def test_a_key_is_needed(gateway: GatewayUnderTest, key: str) -> None:
    response = await gateway.http.post("/v1/chat/completions", headers={"authorization": key}, content=b"{")
    assert _error(response) == (401, "invalid_api_key", None)
    assert response.headers["www-authenticate"] == "Bearer"


async def test_another_projects_model_does_not_exist(gateway: GatewayUnderTest) -> None:
    body = {"model": MINE, "messages": [{"role": "user", "content": "x"}]}
    response = await gateway.http.post("/v1/chat/completions", headers={"authorization": "Bearer key-2"}, json=body)
    assert _error(response) == (404, "model_not_found", "model")


async def test_engine_names_are_no_model_names(gateway: GatewayUnderTest) -> None:
    (engine,) = await gateway.engines()
    for name in (f"r-{next(iter(engine['adapters']))}", "zero", f"base-{engine['revision']}"):
        assert _error(await gateway.chat(name)) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("parameters", "status", "code", "param"),
    [
        ({"temperature": 9}, 400, "invalid_value", "temperature"),
        ({"max_tokens": 5000}, 400, "context_length_exceeded", "max_tokens"),
        ({"text": "word " * 3000}, 400, "context_length_exceeded", "messages"),
        ({"logit_bias": 5}, 400, "invalid_value", "logit_bias"),
        ({"text": "fault:500"}, 500, "engine_error", None),
        ({"guided_json": {}}, 400, "unknown_parameter", "guided_json"),
    ],
)
async def test_errors_are_ours_whoever_found_them(
    gateway: GatewayUnderTest, parameters: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    response = await gateway.chat(BASE, **parameters)
    assert _error(response) == (status, code, param)
    assert "secret" not in response.text


async def test_an_error_before_the_first_chunk_is_no_stream(gateway: GatewayUnderTest) -> None:
    response = await gateway.chat(BASE, temperature=9, stream=True)
    assert _error(response) == (400, "invalid_value", "temperature")


async def test_a_large_body_is_refused_before_it_is_read_whole(gateway: GatewayUnderTest) -> None:
    assert _error(await gateway.chat(BASE, "x" * 200_000)) == (413, "request_too_large", None)


@pytest.mark.parametrize(("content", "code"), [(b"{", "invalid_json"), (b"{}", "missing_required_parameter")])
async def test_a_body_that_is_none_is_refused(gateway: GatewayUnderTest, content: bytes, code: str) -> None:
    response = await gateway.http.post("/v1/chat/completions", content=content)
    assert _error(response)[:2] == (400, code)


async def test_a_compressed_body_is_refused_in_words(gateway: GatewayUnderTest) -> None:
    response = await gateway.http.post(
        "/v1/chat/completions", headers={"content-encoding": "gzip"}, content=b"\x1f\x8b"
    )
    assert _error(response) == (415, "unsupported_content_encoding", None)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)])
async def test_other_routes_have_the_envelope(gateway: GatewayUnderTest, method: str, path: str, status: int) -> None:
    assert _error(await gateway.http.request(method, path))[0] == status


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_frees_the_engine(gateway: GatewayUnderTest, stream: bool) -> None:
    before = (await gateway.simulator())["aborted"]
    body = {"model": MINE, "messages": [{"role": "user", "content": "fault:long"}], "stream": stream}
    async with asyncio.timeout(20):
        request = asyncio.create_task(_read_one(gateway.http, body))
        await until(gateway.running)
        request.cancel()
        await asyncio.wait({request})
        await until(lambda: _aborted(gateway, before + 1))
    await until(lambda: _not_running(gateway))


async def test_metrics_count_requests_and_tokens(gateway: GatewayUnderTest) -> None:
    await gateway.chat(MINE, max_tokens=4)
    await gateway.chat(MINE, max_tokens=4, stream=True)
    text = (await gateway.http.get("/metrics")).text
    assert 'tunesmith_gateway_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert 'tunesmith_gateway_tokens_total{direction="out",key="key-p1",project="p1"}' in text


async def test_metrics_tell_how_each_model_does_until_it_is_deleted(gateway: GatewayUnderTest) -> None:
    name = "ft:tiny:p1:metered:1"
    revision = gateway.add_adapter(name, "metered")
    await gateway.chat(name, "one two", max_tokens=4)
    await gateway.chat(name, "one two", max_tokens=4, stream=True)
    for model, temperature in (("nothing", 0), (name, 9)):
        await gateway.chat(model, temperature=temperature)
    text = (await gateway.http.get("/metrics")).text
    for line in (
        f'tunesmith_gateway_model_in_flight{{model="{name}"}} 0.0',
        f'tunesmith_gateway_model_wait_seconds_count{{model="{name}"}} 3.0',
        f'tunesmith_gateway_model_first_token_seconds_count{{model="{name}"}} 1.0',
        f'tunesmith_gateway_model_loads_total{{model="{name}"}} 1.0',
        f'tunesmith_gateway_model_tokens_total{{direction="in",model="{name}"}} 4.0',
        f'tunesmith_gateway_model_tokens_total{{direction="out",model="{name}"}} 8.0',
        'tunesmith_gateway_errors_total{code="model_not_found",model=""}',
        f'tunesmith_gateway_errors_total{{code="invalid_value",model="{name}"}} 1.0',
        f'revision="{revision[:16]}",state="ready"}} 1.0',
    ):
        assert line in text
    assert 'model="nothing"' not in text
    gateway.control_plane.delete(name)
    await until(lambda: _forgotten(gateway, name))


async def _forgotten(gateway: GatewayUnderTest, name: str) -> bool:
    return f'model="{name}"' not in (await gateway.http.get("/metrics")).text


async def test_embeddings_are_refused_in_words(gateway: GatewayUnderTest) -> None:
    response = await gateway.http.post("/v1/embeddings", json={"model": MINE, "input": "x"})
    assert _error(response) == (400, "embeddings_unsupported", "model")


async def test_a_key_without_the_scope_is_told_so(gateway: GatewayUnderTest) -> None:
    gateway.control_plane.without_scope.add("key-files")
    body = {"model": MINE, "messages": [{"role": "user", "content": "x"}]}
    response = await gateway.http.post("/v1/chat/completions", headers={"authorization": "Bearer key-files"}, json=body)
    assert _error(response) == (403, "missing_scope", None)


async def test_a_key_over_its_rate_waits(gateway: GatewayUnderTest) -> None:
    gateway.control_plane.keys["key-slow"] = "p1"
    gateway.control_plane.limits["key-slow"] = {"requests_per_minute": 1, "tokens_per_minute": 1000}
    async with openai.AsyncOpenAI(
        api_key="key-slow", base_url=str(gateway.http.base_url.join("/v1")), max_retries=0
    ) as client:
        ask = client.chat.completions.with_raw_response.create
        answered = await ask(model=MINE, messages=[{"role": "user", "content": "one two"}], max_tokens=3)
        assert answered.headers["x-ratelimit-remaining-requests"] == "0"
        assert answered.headers["x-ratelimit-limit-tokens"] == "1000"
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(model=MINE, messages=[{"role": "user", "content": "one two"}])
    assert caught.value.code == "rate_limit_exceeded"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
    assert int(caught.value.response.headers["x-ratelimit-remaining-tokens"]) <= 995


async def test_use_is_reported_at_the_end_at_the_latest(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as running:
        for stream in (False, True):
            await running.chat(BASE, "one two", max_tokens=3, stream=stream)
        control_plane = running.control_plane
    lines = [line for report in control_plane.reports for line in report.lines]
    assert {(line.project_id, line.key_id, line.model) for line in lines} == {("p1", "key-p1", BASE)}
    assert [sum(getattr(line, name) for line in lines) for name in ("requests", "input_tokens", "output_tokens")] == [
        2,
        4,
        6,
    ]


async def _read_one(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for _ in response.aiter_lines():
            await asyncio.sleep(0)


async def _not_running(gateway: GatewayUnderTest) -> bool:
    return not await gateway.running()


async def _aborted(gateway: GatewayUnderTest, count: int) -> bool:
    return bool((await gateway.simulator())["aborted"] == count)


def _error(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"], error["param"]
