"""What is said of an engine that cannot be had; `test_fleet.py` has what engines do that can."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inference.gateway import BASE, gateway_on_simulator
from tunesmith_inference.engine_memory import GIBIBYTE


async def test_an_engine_that_is_larger_than_the_budget_says_so(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path, engine_memory_bytes=GIBIBYTE) as gateway:
        response = await gateway.chat(BASE)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_failed_verification")
        (engine,) = await gateway.engines()
        assert "2.0 GiB" in engine["reason"]
        assert "TUNESMITH_ENGINE_MEMORY_BYTES" in engine["reason"]


async def test_an_engine_that_fails_as_nobody_thought_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith_inference.tool_calls.parser_for", lambda folder: dict[str, str]()["surprise"])
    async with gateway_on_simulator(tmp_path) as gateway:
        assert (await gateway.chat(BASE)).json()["error"]["code"] == "model_failed_verification"
        (engine,) = await gateway.engines()
        assert engine["reason"] == "its engine failed: KeyError"


async def test_an_engine_that_is_back_has_no_reason_any_more(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        await gateway.chat(BASE, "fault:die")
        assert (await gateway.chat(BASE)).status_code == 200
        (engine,) = await gateway.engines()
        assert (engine["state"], engine["reason"], engine["starts"] > 1) == ("ready", None, True)
