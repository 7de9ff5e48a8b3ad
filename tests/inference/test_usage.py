"""What was made for a client counts, also where the client leaves in the middle or the engine dies."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.inference.gateway import BASE, GatewayUnderTest, gateway_on_simulator, until

CONTENT: dict[str, Callable[[str], dict[str, Any]]] = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/completions": lambda text: {"prompt": text},
    "/v1/responses": lambda text: {"input": text},
}
PIECE = {
    "/v1/chat/completions": '"delta":{"content":',
    "/v1/completions": '"text":',
    "/v1/responses": '{"type":"response.output_text.delta"',
}
SEEN = 6

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayUnderTest]:
    async with gateway_on_simulator(tmp_path_factory.mktemp("cache")) as running:
        assert (await running.chat(BASE)).status_code == 200
        yield running


@pytest.mark.parametrize("route", CONTENT)
async def test_a_stream_that_its_client_cuts_uses_up_the_keys_limit(gateway: GatewayUnderTest, route: str) -> None:
    key = _key_of_its_own(gateway, route, tokens_per_minute=SEEN)
    aborted = (await gateway.simulator())["aborted"]
    async with _asked(gateway, route, key, "fault:long") as response:
        assert response.headers["x-ratelimit-remaining-tokens"] == str(SEEN)
        await _read(response, PIECE[route], SEEN)
    await until(lambda: _aborted(gateway, aborted + 1))
    assert await until(lambda: _made(gateway, key)) >= SEEN
    async with _asked(gateway, route, key, "one") as refused:
        assert (refused.status_code, json.loads(await refused.aread())["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) > 0


@pytest.mark.parametrize("route", CONTENT)
async def test_a_stream_whose_engine_dies_counts_what_was_made(gateway: GatewayUnderTest, route: str) -> None:
    key = _key_of_its_own(gateway, f"{route}, dies")
    async with _asked(gateway, route, key, "fault:die") as response:
        assert "engine_error" in (await response.aread()).decode()
    assert await _made(gateway, key) == 2


async def test_the_cut_streams_reach_the_control_plane(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        for route in CONTENT:
            async with _asked(gateway, route, "key-1", "fault:long") as response:
                await _read(response, PIECE[route], SEEN)
        control_plane = gateway.control_plane
    lines = [line for report in control_plane.reports for line in report.lines]
    assert sum(line.requests for line in lines) == len(CONTENT)
    assert sum(line.output_tokens for line in lines) >= SEEN * len(CONTENT)


def _key_of_its_own(gateway: GatewayUnderTest, name: str, **limits: int) -> str:
    gateway.control_plane.keys[name] = name
    gateway.control_plane.limits[name] = limits
    return name


def _asked(gateway: GatewayUnderTest, route: str, key: str, text: str) -> Any:
    body = {"model": BASE, "stream": True, **CONTENT[route](text)}
    return gateway.http.stream("POST", route, json=body, headers={"authorization": f"Bearer {key}"})


async def _read(response: httpx.Response, piece: str, count: int) -> None:
    """Reads so many pieces of text and no more."""
    async for line in response.aiter_lines():
        count -= piece in line
        if not count:
            return


async def _made(gateway: GatewayUnderTest, key: str) -> int:
    """How many tokens were made for the key."""
    begin = f'tunesmith_gateway_tokens_total{{direction="out",key="key-{key}",project="{key}"}} '
    lines = (await gateway.http.get("/metrics")).text.splitlines()
    return int(sum(float(line.removeprefix(begin)) for line in lines if line.startswith(begin)))


async def _aborted(gateway: GatewayUnderTest, count: int) -> bool:
    return bool((await gateway.simulator())["aborted"] == count)
