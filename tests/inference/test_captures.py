"""Captures reach the control plane, redacted and once; no request waits for them or fails by them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.inference.gateway import BASE, GatewayUnderTest, answer, gateway_on_simulator, until
from tests.inference.test_redaction import CAPTURE
from tests.support.hook_service import HookService
from tunesmith_inference import captures
from tunesmith_inference.captures import Capture, CaptureLog, Fate, RedactionFailed
from tunesmith_inference.ledger import ReportFailed

TOOL = {"type": "function", "function": {"name": "say", "parameters": {"type": "object"}}}


class Way:
    """A log with a redaction and a control plane that the test decides about."""

    def __init__(self) -> None:
        self.fates: Counter[Fate] = Counter()
        self.sent: list[list[str]] = []
        self.deaf = False
        self.refused = 0
        self.unfit: set[str] = set()
        self.log = CaptureLog(self._redact, self._send, lambda fate, number: self.fates.update({fate: number}))

    def add(self, *names: str, size: int = 10) -> None:
        for name in names:
            self.log.add(replace(CAPTURE, id=name, messages="x" * size, tools="", answer=""))

    async def _redact(self, capture: Capture) -> Capture:
        if capture.id in self.unfit:
            raise RedactionFailed("no")
        return capture

    async def _send(self, batch: Sequence[Capture]) -> int:
        self.sent.append([capture.id for capture in batch])
        if self.deaf:
            raise ReportFailed("UNAVAILABLE")
        return self.refused


async def test_a_batch_whose_fate_is_unknown_is_sent_again_unchanged() -> None:
    way = Way()
    way.deaf = True
    way.add("a", "b")
    with pytest.raises(ReportFailed):
        await way.log.deliver()
    way.add("c")
    way.deaf, way.refused = False, 1
    await way.log.deliver()
    assert way.sent == [["a", "b"], ["a", "b"], ["c"]]
    assert way.fates == {Fate.STORED: 1, Fate.REFUSED: 2}


async def test_what_cannot_be_redacted_is_dropped_and_counted() -> None:
    way = Way()
    way.unfit = {"b", "c"}
    way.add("a", "b", "c")
    await way.log.deliver()
    assert (way.sent, way.fates[Fate.REDACTION_FAILED]) == ([["a"]], 2)
    way.add("c")
    await way.log.deliver()
    assert len(way.sent) == 1, "nothing is sent where nothing is left"


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "BUFFER_BYTES", 250)
    monkeypatch.setattr(captures, "MAX_CAPTURE_BYTES", 120)
    monkeypatch.setattr(captures, "_BATCH_BYTES", 200)
    way = Way()
    way.add("large", size=121)
    way.add("a", "b", "c", size=100)
    assert way.fates == {Fate.TOO_LARGE: 1, Fate.NO_ROOM: 1}
    await way.log.deliver()
    way.add("d", "e", "f", size=60)
    await way.log.deliver()
    assert way.sent == [["a", "b"], ["d", "e", "f"]], "what was sent makes room"


async def test_a_stop_sends_what_is_left_or_counts_it() -> None:
    way = Way()
    task = asyncio.create_task(way.log.run())
    way.add("a")
    await until(lambda: way.sent)
    task.cancel()
    way.add("b")
    await way.log.close()
    assert way.sent == [["a"], ["b"]]
    way.deaf = True
    way.add("c", "d")
    await way.log.close()
    assert way.fates[Fate.LOST] == 2


async def test_the_log_goes_on_after_the_control_plane_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "_FIRST_PAUSE_SECONDS", 0.01)
    way = Way()
    way.deaf = True
    task = asyncio.create_task(way.log.run())
    way.add("a")
    await until(lambda: len(way.sent) >= 2)
    way.deaf = False
    await until(lambda: way.fates[Fate.STORED])
    task.cancel()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hook() -> AsyncIterator[HookService]:
    async with HookService().running() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory, hook: HookService) -> AsyncIterator[GatewayUnderTest]:
    template = "{% if tools %}<tool_call></tool_call>{% endif %}"
    folder: Path = tmp_path_factory.mktemp("cache")
    async with gateway_on_simulator(folder, template=template, redaction_url=f"{hook.url}/redact") as running:
        running.control_plane.capturing.add("key-1")
        yield running


async def captured(gateway: GatewayUnderTest, request_id: str) -> Any:
    """The capture of the request, once it is there."""
    found = gateway.control_plane.captures
    await until(lambda: any(each.request_id == request_id for each in found))
    return next(each for each in found if each.request_id == request_id)


@pytest.mark.asyncio(loop_scope="module")
async def test_whole_and_streamed_answers_are_captured_alike(gateway: GatewayUnderTest) -> None:
    metadata = {"team": "a", "who": "ann@example.org", "wrong": 5, "": "x"}
    for stream in (False, True):
        response = await gateway.chat(
            BASE, "one ann@example.org", stream=stream, metadata=metadata, max_tokens=4, n=1 if stream else 2
        )
        assert response.status_code == 200
        capture = await captured(gateway, response.headers["x-request-id"])
        assert capture.id in response.text
        assert (capture.project_id, capture.key_id, capture.model) == ("p1", "key-p1", BASE)
        assert dict(capture.metadata) == {"team": "a", "who": "[EMAIL]"}
        assert json.loads(capture.messages) == [{"role": "user", "content": "one [EMAIL]"}]
        said = json.loads(capture.answer)
        assert said["content"].split() == answer("", "one ann@example.org", 4).split()
        used = (2, 4 if stream else 8)
        assert (capture.finish_reason, (capture.prompt_tokens, capture.completion_tokens)) == ("length", used)


@pytest.mark.asyncio(loop_scope="module")
async def test_calls_of_tools_and_responses_are_captured(gateway: GatewayUnderTest) -> None:
    for stream in (False, True):
        response = await gateway.chat(
            BASE, "one two", stream=stream, max_tokens=3, tools=[TOOL], tool_choice="required"
        )
        capture = await captured(gateway, response.headers["x-request-id"])
        (call,) = json.loads(capture.answer)["tool_calls"]
        assert json.loads(call["function"]["arguments"])["said"].split() == answer("", "one two", 3).split()
        assert (capture.finish_reason, json.loads(capture.tools)) == ("tool_calls", [TOOL])
        body = {"model": BASE, "input": "one two", "instructions": "Count.", "stream": stream}
        response = await gateway.http.post("/v1/responses", json=body)
        capture = await captured(gateway, response.headers["x-request-id"])
        assert [each["role"] for each in json.loads(capture.messages)] == ["system", "user"]
        assert (capture.id[:5], capture.id in response.text) == ("resp_", True)


@pytest.mark.asyncio(loop_scope="module")
async def test_who_has_not_opted_in_or_opts_out_is_not_captured(gateway: GatewayUnderTest, hook: HookService) -> None:
    await captured(gateway, (await gateway.chat(BASE, "first")).headers["x-request-id"])
    before, asked = len(gateway.control_plane.captures), len(hook.asked)
    await gateway.chat(BASE, store=False)
    other = {"authorization": "Bearer key-2"}
    body = {"model": BASE, "messages": [{"role": "user", "content": "a"}], "store": True}
    assert (await gateway.http.post("/v1/chat/completions", json=body, headers=other)).status_code == 200
    assert (await gateway.http.post("/v1/completions", json={"model": BASE, "prompt": "a"})).status_code == 200
    assert (await gateway.chat(BASE, temperature=5)).status_code == 400
    async with gateway.http.stream(
        "POST", "/v1/chat/completions", json=body | {"store": True, "stream": True, "messages": LONG}
    ) as stream:
        await anext(stream.aiter_lines())
    await captured(gateway, (await gateway.chat(BASE, "last", store=True)).headers["x-request-id"])
    assert (len(gateway.control_plane.captures), len(hook.asked)) == (before + 1, asked + 1)


LONG = [{"role": "user", "content": "fault:long"}]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_redaction_that_is_away_drops_the_capture_and_not_the_answer(
    gateway: GatewayUnderTest, hook: HookService, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(gateway.control_plane.captures)
    hook.status = 500
    assert (await gateway.chat(BASE, "unspeakable")).status_code == 200
    await until(lambda: dropped(gateway, 'captures_total{fate="redaction_failed"} 1.0'))
    hook.status = 200
    assert "unspeakable" not in caplog.text
    await captured(gateway, (await gateway.chat(BASE, "next")).headers["x-request-id"])
    assert len(gateway.control_plane.captures) == before + 1


async def dropped(gateway: GatewayUnderTest, line: str) -> bool:
    """Whether the metrics have the line."""
    return f"tunesmith_gateway_{line}" in (await gateway.http.get("/metrics")).text


@pytest.mark.asyncio(loop_scope="module")
async def test_captures_wait_for_a_control_plane_that_is_away(gateway: GatewayUnderTest) -> None:
    await gateway.control_plane.stop()
    response = await gateway.chat(BASE, "meanwhile")
    assert response.status_code == 200
    async with gateway.control_plane.running():
        await captured(gateway, response.headers["x-request-id"])


async def test_nobody_starts_with_rules_that_are_wrong(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {name: n, pattern: '(', replacement: x}")
    with pytest.raises(ValueError, match="TUNESMITH_REDACTION_RULES"):
        async with gateway_on_simulator(tmp_path / "cache", redaction_rules=rules):
            pass
