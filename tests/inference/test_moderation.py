"""What the operator's service flags reaches neither engine nor client; without its verdict nothing does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from tests.inference.gateway import BASE, GatewayUnderTest, answer, gateway_on_simulator, until
from tests.support.hook_service import HookService
from tunesmith_inference.errors import GatewayError, engine_failed
from tunesmith_inference.hooks import Hook
from tunesmith_inference.moderation import Moderation

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
USED = {"prompt_tokens": 1, "completion_tokens": 9}
PROMPT = "one two"
SAID = answer("", PROMPT, 16).split()
PARTS = [{"type": "text", "text": "bad"}]
TOOL = {"type": "function", "function": {"name": "say", "description": "so bad !"}}
TEMPLATE = "{% if tools %}<tool_call></tool_call>{% endif %}"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[HookService]:
    async with HookService().running() as service:
        yield service


@pytest.fixture
def service(running: HookService) -> HookService:
    """The service, that flags nothing yet."""
    running.words, running.status, running.answer, running.held = set(), 200, None, False
    running.asked.clear()
    return running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory, running: HookService) -> AsyncIterator[GatewayUnderTest]:
    async with gateway_on_simulator(
        tmp_path_factory.mktemp("cache"),
        template=TEMPLATE,
        moderation_url=f"{running.url}/v1/moderations",
        moderation_api_key="hook-key",
        moderation_model="omni-moderation-latest",
        moderation_stream_characters=12,
    ) as made:
        made.control_plane.capturing.add("key-1")
        await made.chat(BASE)
        yield made


def text_of(events: str) -> str:
    """What the chunks of a chat completion say together."""
    chunks = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def asked(gateway: GatewayUnderTest) -> int:
    """Requests that the engine had."""
    return sum((await gateway.simulator())["asked"].values())


async def test_what_passes_is_answered_as_ever(gateway: GatewayUnderTest, service: HookService) -> None:
    assert (await gateway.chat(BASE, PROMPT)).json()["choices"][0]["message"]["content"] == " ".join(SAID)
    streamed = (await gateway.chat(BASE, PROMPT, stream=True)).text
    assert (text_of(streamed).split(), streamed.endswith("data: [DONE]\n\n")) == (SAID, True)
    assert service.asked[0] == {"input": [PROMPT], "model": "omni-moderation-latest"}
    assert service.headers["authorization"] == "Bearer hook-key"
    metrics = (await gateway.http.get("/metrics")).text
    assert 'tunesmith_gateway_moderations_total{side="answer",verdict="passed"}' in metrics


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "a bad word"}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": PARTS}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [TOOL]}, "messages"),
        ("completions", {"prompt": "a bad word"}, "prompt"),
        ("completions", {"prompt": ["fine", "bad"]}, "prompt"),
        ("responses", {"input": "fine", "instructions": "be bad"}, "input"),
    ],
)
async def test_a_flagged_prompt_reaches_no_engine(
    gateway: GatewayUnderTest, service: HookService, path: str, body: dict[str, Any], param: str
) -> None:
    service.words.add("bad")
    before = await asked(gateway)
    response = await gateway.http.post(f"/v1/{path}", json={"model": BASE, **body})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "content_policy_violation", param)
    assert error["type"] == "invalid_request_error"
    assert await asked(gateway) == before


async def test_prompts_of_tokens_cannot_be_read_and_are_refused(
    gateway: GatewayUnderTest, service: HookService
) -> None:
    for prompt in ([1, 2], [[1, 2]]):
        response = await gateway.http.post("/v1/completions", json={"model": BASE, "prompt": prompt})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "prompt_not_text")


async def test_a_flagged_answer_comes_empty(gateway: GatewayUnderTest, service: HookService) -> None:
    service.words.add(SAID[5])
    captures = len(gateway.control_plane.captures)
    chat = (await gateway.chat(BASE, PROMPT)).json()
    (choice,) = chat["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "content_filter")
    assert chat["usage"]["completion_tokens"] == 16, "what was made is used"
    text = (await gateway.http.post("/v1/completions", json={"model": BASE, "prompt": PROMPT})).json()["choices"][0]
    assert (text["text"], text["finish_reason"]) == ("", "content_filter")
    response = (await gateway.http.post("/v1/responses", json={"model": BASE, "input": PROMPT})).json()
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
    assert response["output"][0]["content"][0]["text"] == ""
    tool = {"type": "function", "function": {"name": "say", "parameters": {}}}
    called = (await gateway.chat(BASE, PROMPT, tools=[tool], tool_choice="required")).json()["choices"][0]
    assert (called["message"].get("tool_calls"), called["finish_reason"]) == (None, "content_filter")
    service.words.clear()
    await gateway.chat(BASE, "the next")
    await until(lambda: len(gateway.control_plane.captures) > captures)
    assert len(gateway.control_plane.captures) == captures + 1, "what was filtered is not captured"


async def test_a_flagged_stream_ends_before_the_portion(gateway: GatewayUnderTest, service: HookService) -> None:
    service.words.add(SAID[9])
    url = str(gateway.http.base_url.join("/v1"))
    async with openai.AsyncOpenAI(api_key="key-1", base_url=url, max_retries=0) as client:
        messages: Any = [{"role": "user", "content": PROMPT}]
        stream = await client.chat.completions.create(
            model=BASE, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).split()
        assert said == SAID[: len(said)]
        assert 0 < len(said) <= 9
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "content_filter"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens >= len(said)
        events = [event async for event in await client.responses.create(model=BASE, input=PROMPT, stream=True)]
    assert events[-1].type == "response.incomplete"
    texts = await gateway.http.post("/v1/completions", json={"model": BASE, "prompt": PROMPT, "stream": True})
    assert SAID[9] not in [
        word
        for line in texts.text.splitlines()
        if line.startswith("data: {")
        for choice in json.loads(line[6:])["choices"]
        for word in choice["text"].split()
    ]
    assert '"finish_reason":"content_filter"' in texts.text


async def test_without_a_verdict_nothing_passes(gateway: GatewayUnderTest, service: HookService) -> None:
    service.status = 500
    before = await asked(gateway)
    response = await gateway.chat(BASE, PROMPT)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "moderation_unavailable")
    assert response.headers["retry-after"] == "5"
    service.status, service.answer = 200, {"results": [{"flagged": "no"}]}
    assert (await gateway.chat(BASE, PROMPT)).status_code == 503
    assert await asked(gateway) == before
    assert 'side="prompt",verdict="failed"' in (await gateway.http.get("/metrics")).text


async def test_silence_is_no_verdict(tmp_path: Path, service: HookService) -> None:
    service.held = True
    url = f"{service.url}/v1/moderations"
    async with gateway_on_simulator(tmp_path, moderation_url=url, hook_seconds=0.2) as gateway:
        await until(lambda: ready(gateway))
        response = await gateway.chat(BASE, PROMPT)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "moderation_unavailable")
        assert await asked(gateway) == 0


async def test_a_service_that_goes_away_ends_a_stream_with_an_error(
    gateway: GatewayUnderTest, service: HookService
) -> None:
    body = {"model": BASE, "messages": [{"role": "user", "content": "fault:long"}], "stream": True}
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        service.status = 500
        rest = [line async for line in lines if line]
    assert json.loads(rest[-1][6:])["error"]["code"] == "moderation_unavailable"
    await until(lambda: idle(gateway))


async def ready(gateway: GatewayUnderTest) -> bool:
    """Whether there is an engine that answers."""
    return [engine["state"] for engine in await gateway.engines()] == ["ready"]


async def idle(gateway: GatewayUnderTest) -> bool:
    """Whether the engine works on nothing."""
    return await gateway.works_on(0)


async def test_who_leaves_ends_the_question(gateway: GatewayUnderTest, service: HookService) -> None:
    service.held = True
    gone = service.gone
    with pytest.raises(httpx.ReadTimeout):
        await gateway.http.post(
            "/v1/chat/completions", json={"model": BASE, "messages": [{"role": "user", "content": "a"}]}, timeout=0.3
        )
    await until(lambda: service.gone > gone)


async def test_an_operator_may_let_texts_pass_meanwhile(tmp_path: Path, service: HookService) -> None:
    service.status = 500
    url = f"{service.url}/v1/moderations"
    async with gateway_on_simulator(tmp_path, moderation_url=url, moderation_fails_open=True) as gateway:
        assert (await gateway.chat(BASE, PROMPT)).status_code == 200
        streamed = (await gateway.chat(BASE, PROMPT, stream=True)).text
        assert text_of(streamed).split() == SAID
        service.status, service.words = 200, {"one"}
        assert (await gateway.chat(BASE, PROMPT)).status_code == 400


def chunk(text: str, index: int = 0, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": reason}
    return {**HEAD, "choices": [choice], "usage": USED}


async def guarded(service: HookService, *chunks: Any, every: int = 10) -> list[dict[str, Any]]:
    """What a client is sent of these chunks."""

    async def stream() -> AsyncIterator[dict[str, Any]]:
        for each in chunks:
            if isinstance(each, Exception):
                raise each
            yield each

    async with Hook(f"{service.url}/v1/moderations", "", 5) as hook:
        moderation = Moderation(hook, model="", fails_open=False, every=every, count=lambda side, verdict: None)
        return [each async for each in moderation.guarded(stream())]


async def test_what_says_nothing_is_not_held_and_nothing_unasked_is_sent(service: HookService) -> None:
    role = {**HEAD, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    chunks = [role, *(chunk("123 ") for _ in range(7)), chunk("", reason="stop"), {**HEAD, "choices": []}]
    assert await guarded(service, *chunks) == chunks
    assert [len(body["input"][0]) for body in service.asked] == [12, 24, 28], "all that was said so far"
    with pytest.raises(GatewayError):
        await guarded(service, chunk("1"), engine_failed())
    assert len(service.asked) == 3, "what was held when the engine died is not sent"


async def test_choices_that_have_ended_stay_as_they_are(service: HookService) -> None:
    service.words.add("bad")
    first = chunk("good and long", reason="stop")
    sent = await guarded(service, first, chunk("bad and long", 1), chunk("more", 1, "stop"))
    assert sent[0] == first
    (end,) = sent[1]["choices"]
    assert (end["index"], end["finish_reason"], end["delta"]) == (1, "content_filter", {})
    assert (sent[2]["choices"], sent[2]["usage"], len(sent)) == ([], USED, 3)
