"""What comes back from an operator's hook is believed only in one form."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.hook_service import HookService
from tests.support.ports import free_port
from tunesmith_inference.hooks import Hook, HookFailed


@pytest.fixture
async def service() -> AsyncIterator[HookService]:
    async with HookService().running() as running:
        yield running


async def test_each_text_has_a_result(service: HookService) -> None:
    service.words.add("bad")
    async with Hook(f"{service.url}/v1/moderations", "secret", 5) as hook:
        results = await hook.ask(["a bad one", "Grüße 🙂"], model="m")
    assert [result["flagged"] for result in results] == [True, False]
    assert service.asked == [{"input": ["a bad one", "Grüße 🙂"], "model": "m"}]
    assert service.headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, {"results": [{}]}),
        (302, {"results": [{}]}),
        (200, {"results": []}),
        (200, {"results": [{}, {}]}),
        (200, {"results": ["flagged"]}),
        (200, {"results": {"0": {}}}),
        (200, ["results"]),
        (200, "results"),
    ],
)
async def test_what_is_no_answer_fails(service: HookService, status: int, answer: Any) -> None:
    service.status, service.answer = status, answer
    async with Hook(f"{service.url}/redact", "", 5) as hook:
        with pytest.raises(HookFailed) as caught:
            await hook.ask(["private words"])
    assert "private" not in str(caught.value)


async def test_silence_and_absence_fail(service: HookService) -> None:
    service.held = True
    for url in (f"{service.url}/redact", f"http://127.0.0.1:{free_port()}/"):
        async with Hook(url, "", 0.2) as hook:
            with pytest.raises(HookFailed):
                await hook.ask(["a"])
