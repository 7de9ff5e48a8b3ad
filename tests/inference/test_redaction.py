"""What may not be kept is taken out, and nothing is kept that could not be redacted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.hook_service import HookService
from tunesmith_inference import redaction
from tunesmith_inference.captures import Capture, RedactionFailed
from tunesmith_inference.hooks import Hook
from tunesmith_inference.redaction import Redactor, load_rules

CAPTURE = Capture(
    id="chatcmpl-1",
    project_id="p1",
    key_id="key-1",
    model="m",
    created=1,
    request_id="req_1",
    metadata={"from": "ann@example.org"},
    finish_reason="stop",
    prompt_tokens=1,
    completion_tokens=1,
    messages=json.dumps([{"role": "user", "content": "I am ann@example.org", "secret_extra": "ann@example.org"}]),
    tools=json.dumps([{"type": "function", "function": {"name": "mail", "description": "as ann@example.org"}}]),
    answer=json.dumps({"role": "assistant", "content": "Hello ann@example.org", "refusal": None}),
)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("mail Ann.Lee+x@mail.example.co.uk, now", "mail [EMAIL], now"),
        ("me@localhost is none", "me@localhost is none"),
        ("card 4111 1111 1111 1111 or 4111-1111-1111-1111.", "card [CARD] or [CARD]."),
        ("pay to DE89 3704 0044 0532 0130 00 today", "pay to [IBAN] today"),
        ("GB82WEST12345698765432", "[IBAN]"),
        ("order A-1042 of 2026-01-02, 1795927606123", "order A-1042 of 2026-01-02, 1795927606123"),
        ("use ts-0123456789abcdefXYZ_-", "use [SECRET]"),
        ("ghp_0123456789abcdefghij", "[SECRET]"),
        ("its-a-hyphenated-thing-here", "its-a-hyphenated-thing-here"),
    ],
)
def test_the_rules_that_come_along(text: str, left: str) -> None:
    for rule in load_rules(None):
        text = rule.apply(text)
    assert text == left


async def test_every_text_is_redacted_and_nothing_else_is_kept() -> None:
    kept = await Redactor(load_rules(None), None).redacted(CAPTURE)
    assert "ann@" not in str(kept)
    assert json.loads(kept.messages) == [{"role": "user", "content": "I am [EMAIL]"}]
    assert json.loads(kept.answer) == {"role": "assistant", "content": "Hello [EMAIL]"}
    assert (json.loads(kept.tools)[0]["function"]["description"], kept.metadata) == ("as [EMAIL]", {"from": "[EMAIL]"})
    assert replace(kept, messages="", tools="", answer="", metadata={}) == replace(
        CAPTURE, messages="", tools="", answer="", metadata={}
    )


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "- pattern: a",
        "- {name: n, pattern: '(', replacement: x}",
        "- {name: n, pattern: a, replacement: 5, x: 1}",
        "5",
    ],
)
def test_rules_that_make_no_sense_are_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"TUNESMITH_REDACTION_RULES: .*{path}"):
        load_rules(path)
    with pytest.raises(ValueError, match="TUNESMITH_REDACTION_RULES"):
        load_rules(tmp_path / "missing.yaml")


async def test_rules_of_the_operator_take_the_place_of_those(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("- {name: greeting, pattern: Hello, replacement: '\\1 Bye'}\n")
    kept = await Redactor(load_rules(path), None).redacted(CAPTURE)
    assert json.loads(kept.answer)["content"] == "\\1 Bye ann@example.org"
    path.write_text("[]")
    assert load_rules(path) == ()


async def test_a_pattern_that_a_text_makes_slow_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_RULE_SECONDS", 0.2)
    path = tmp_path / "rules.yaml"
    path.write_text("- {name: slow, pattern: '(x+x+)+y', replacement: ''}\n")
    hostile = replace(CAPTURE, messages=json.dumps([{"role": "user", "content": "x" * 10_000}]))
    with pytest.raises(RedactionFailed):
        await Redactor(load_rules(path), None).redacted(hostile)


@pytest.fixture
async def service() -> AsyncIterator[HookService]:
    async with HookService().running() as running:
        yield running


async def test_the_hook_gets_what_the_rules_leave_and_has_the_last_word(service: HookService) -> None:
    service.words.add("Hello")
    async with Hook(f"{service.url}/redact", "", 5) as hook:
        kept = await Redactor(load_rules(None), hook).redacted(CAPTURE)
    assert json.loads(kept.answer)["content"] == "*** [EMAIL]"
    assert "ann@" not in json.dumps(service.asked)


@pytest.mark.parametrize(
    "result", [{"results": [{"text": 5}] * 20}, {"results": []}, {"results": [{"text": "\ud800"}] * 9}, {}]
)
async def test_without_an_answer_for_each_text_nothing_is_kept(service: HookService, result: object) -> None:
    service.answer = result
    async with Hook(f"{service.url}/redact", "", 5) as hook:
        with pytest.raises(RedactionFailed) as caught:
            await Redactor((), hook).redacted(CAPTURE)
    assert "ann" not in str(caught.value)
