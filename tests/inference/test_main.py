"""The gateway as a process of its own: it serves by its environment, stops on SIGTERM and never leaves an engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.inference.gateway import BASE, BASE_REVISION, make_base, servable, until
from tests.support import engine_simulator
from tests.support.ports import free_port
from tests.support.serving_control_plane import SERVICE_TOKEN, ServingControlPlane
from tunesmith_proto.registry.v1 import serving_pb2


@contextlib.asynccontextmanager
async def _gateway(tmp_path: Path, **settings: str) -> AsyncIterator[tuple[Process, str, Path]]:
    """A gateway process; its engine's interpreter is a script that notes its pid and becomes the simulator."""
    make_base(tmp_path)
    pid_file = tmp_path / "engine_pid"
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\necho $$ > {pid_file}.new && mv {pid_file}.new {pid_file}\n"
        f'shift 2\nexec {shlex.join(engine_simulator.COMMAND)} "$@"\n'
    )
    python.chmod(0o755)
    control_plane = ServingControlPlane()
    control_plane.keys["key-1"] = "p1"
    control_plane.models[BASE] = servable(BASE, BASE_REVISION, serving_pb2.SERVABLE_KIND_BASE, project_id="")
    port = free_port()
    async with control_plane.running():
        environment = os.environ | {
            "TUNESMITH_CONTROL_PLANE": control_plane.address,
            "TUNESMITH_SERVICE_TOKEN": SERVICE_TOKEN,
            "TUNESMITH_CACHE_DIR": str(tmp_path),
            "TUNESMITH_GATEWAY_PORT": str(port),
            "TUNESMITH_ENGINE_PYTHON": str(python),
            "TUNESMITH_ENGINE_DEVICE": "cpu",
            **settings,
        }
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tunesmith_inference", env=environment)
        try:
            yield process, f"http://127.0.0.1:{port}", pid_file
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_it_serves_and_takes_its_engine_with_it(tmp_path: Path, end: signal.Signals) -> None:
    async with _gateway(tmp_path) as (process, url, pid_file):
        async with httpx.AsyncClient(base_url=url, timeout=40, trust_env=False) as http:
            await until(lambda: _answers(http))
            body = {"model": BASE, "messages": [{"role": "user", "content": "hi"}]}
            headers = {"authorization": "Bearer key-1"}
            assert (await http.post("/v1/chat/completions", headers=headers, json=body)).status_code == 200
        engine = int(pid_file.read_text())
        process.send_signal(end)
        assert await asyncio.wait_for(process.wait(), 20) == (0 if end is signal.SIGTERM else -9)
        await until(lambda: not Path(f"/proc/{engine}").exists())


@pytest.mark.parametrize(("seconds", "tokens", "whole"), [("60", 40, True), ("0", 400, False)])
async def test_answers_under_way_have_their_time_to_end(tmp_path: Path, seconds: str, tokens: int, whole: bool) -> None:
    async with _gateway(tmp_path, TUNESMITH_DRAIN_SECONDS=seconds) as (process, url, _):
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
            await until(lambda: _answers(http))
            said = [{"role": "user", "content": "fault:slow"}]
            body = {"model": BASE, "messages": said, "max_tokens": tokens, "stream": True}
            headers = {"authorization": "Bearer key-1"}
            async with http.stream("POST", "/v1/chat/completions", headers=headers, json=body) as answer:
                lines = answer.aiter_lines()
                assert (await anext(lines)).startswith("data: {")
                process.send_signal(signal.SIGTERM)
                rest = []
                with contextlib.suppress(httpx.RemoteProtocolError):
                    rest = [line async for line in lines if line]
        assert await asyncio.wait_for(process.wait(), 60) == 0
        assert (rest[-1:] == ["data: [DONE]"]) is whole


async def _answers(http: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return (await http.get("/health")).status_code == 200
    return False
