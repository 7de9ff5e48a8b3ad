"""kill -9 between an answer and its capture: no death of the control plane loses or doubles one, the gateway's few."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.architecture.source_tree import ROOT
from tests.conformance.platform_under_test import simulated_environment
from tests.inference import real_model
from tests.support.artifacts import BASE_ID
from tests.support.live_server import LiveServer, wait_until
from tests.support.ports import free_ports

POINTS = ("capture.stored", "capture.writing", "capture.written:2")
TOKEN = "service-token-of-the-test"
ENGINES = ("simulator", pytest.param("vllm", marks=pytest.mark.engine))

pytestmark = [pytest.mark.soak, pytest.mark.timeout(400)]


@dataclass
class Platform:
    """A control plane and a gateway beside it, both of them real processes, and the ids that clients were answered."""

    server: LiveServer
    gateway: subprocess.Popen[bytes] | None
    environment: dict[str, str]
    key: str = ""
    answered: list[str] = field(default_factory=list)

    def start_gateway(self) -> None:
        """Starts the gateway; requests wait for its engine."""
        self.gateway = subprocess.Popen(
            [sys.executable, "-m", "tunesmith_inference"], env=self.environment, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: self._is_up(), 60, "the gateway did not start")

    def kill_gateway(self) -> None:
        """kill -9; its engine dies with it."""
        assert self.gateway is not None, "it was not started"
        self.gateway.kill()
        self.gateway.wait()
        self.gateway = None

    def ask(self, times: int) -> list[str]:
        """So many chat completions; their ids."""
        ids = [str(self.chat().json()["id"]) for _ in range(times)]
        self.answered += ids
        return ids

    def captured(self) -> list[str]:
        """Ids of what is kept, oldest first, as often as it is kept."""
        ids: list[str] = []
        more: dict[str, Any] = {"has_more": True}
        while more["has_more"]:
            query = {"limit": 100} | ({"after": ids[-1]} if ids else {})
            more = self.server.request("GET", "/chat/completions", params=query).json()
            ids += [each["id"] for each in more["data"]]
        return ids

    def chat(self, **more: Any) -> httpx.Response:
        """A chat completion."""
        body = {"model": BASE_ID, "messages": [{"role": "user", "content": "Say a."}], "max_tokens": 4}
        answer = self._gateway("POST", "/v1/chat/completions", json=body | more)
        assert answer.status_code == 200, answer.text
        return answer

    def _is_up(self) -> bool:
        try:
            return self._gateway("GET", "/health").status_code == 200
        except httpx.TransportError:
            return False

    def _gateway(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        url = f"http://127.0.0.1:{self.environment['TUNESMITH_GATEWAY_PORT']}{path}"
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.request(method, url, headers=headers, **options)


@contextmanager
def running(folder: Path, engine: str) -> Iterator[Platform]:
    """Starts both below `folder`, with that engine, and ends them with the block."""
    environment = simulated_environment(folder) | {"TUNESMITH_SERVICE_TOKEN": TOKEN}
    if engine == "vllm":
        base = real_model.build_base(folder / "base")
        Path(environment["TUNESMITH_BASE_MODELS"]).write_text(f"- {{id: {BASE_ID}, source: '{base}'}}\n")
        python = os.environ.get("TUNESMITH_ENGINE_PYTHON") or str(ROOT / ".venv-engine/bin/python")
        environment["TUNESMITH_ENGINE_PYTHON"] = python
    (port,) = free_ports(1)
    with LiveServer(folder / "home", environment=environment) as server:
        of_gateway = environment | {
            "TUNESMITH_CONTROL_PLANE": server.grpc_address,
            "TUNESMITH_GATEWAY_PORT": str(port),
        }
        platform = Platform(server, None, os.environ | of_gateway)
        body = {"name": "captured", "capture": True}
        made = server.request("POST", "/organization/projects/default/api_keys", json=body)
        platform.key = made.json()["value"]
        platform.start_gateway()
        try:
            yield platform
        finally:
            if platform.gateway is not None:
                platform.kill_gateway()


@pytest.mark.parametrize("engine", ENGINES)
def test_no_death_doubles_a_capture_and_few_lose_one(tmp_path: Path, engine: str) -> None:
    with running(tmp_path, engine) as platform:
        platform.ask(3)
        wait_until(lambda: len(platform.captured()) == 3, 30, "no capture came")
        for point in POINTS:
            platform.server.kill()
            platform.server.start(failpoint=point)
            platform.ask(5)
            wait_until(platform.server.has_ended, 60, f"{point} was not reached")
            platform.ask(5)
            platform.server.start()
            wait_until(lambda: sorted(platform.captured()) == sorted(platform.answered), 60, "not each of them once")

        before = platform.captured()
        platform.ask(5)
        platform.kill_gateway()
        platform.start_gateway()
        platform.ask(1)
        wait_until(lambda: platform.captured()[-1] == platform.answered[-1], 30, "the gateway captures no more")
        after = platform.captured()
        assert after[: len(before)] == before
        assert len(after) == len(set(after)) <= len(platform.answered)
        assert set(after) <= set(platform.answered), "only what was answered"


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_kept_is_what_was_said(tmp_path: Path, engine: str) -> None:
    greedy = {"temperature": 0, "ignore_eos": True, "logit_bias": real_model.ONLY_A}
    with running(tmp_path, engine) as platform:
        whole = platform.chat(**greedy, metadata={"asked": "whole"}).json()
        several = platform.chat(**greedy, n=2).json()
        streamed = streamed_answer(platform.chat(**greedy, n=2, stream=True))
        platform.chat(**greedy, store=False)
        said = {answer["id"]: answer["choices"][0]["message"]["content"] for answer in (whole, several)}
        said[streamed["id"]] = streamed["content"]
        assert len(set(said.values())) == 1, "greedy answers to one question are one"
        wait_until(lambda: len(platform.captured()) == len(said), 30, "not each of them is kept")

        kept = {each: platform.server.request("GET", f"/chat/completions/{each}").json() for each in said}

        assert {each: stored["choices"][0]["message"]["content"] for each, stored in kept.items()} == said
        assert {len(stored["choices"]) for stored in kept.values()} == {1}, "the first choice"
        assert {stored["usage"]["completion_tokens"] for stored in kept.values()} == {4}
        assert kept[whole["id"]]["metadata"] == {"asked": "whole"}


def streamed_answer(answer: httpx.Response) -> dict[str, str]:
    """Id and first choice of a streamed chat completion."""
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0]
    return {"id": chunks[0]["id"], "content": "".join(choice["delta"].get("content") or "" for choice in choices)}
