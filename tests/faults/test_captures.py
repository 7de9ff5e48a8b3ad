"""kill -9 between an answer and its capture: no death of the control plane loses or doubles one, the gateway's few."""

from __future__ import annotations

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

from tests.conformance.platform_under_test import simulated_environment
from tests.support.artifacts import BASE_ID
from tests.support.live_server import LiveServer, free_ports, wait_until

POINTS = ("capture.stored", "capture.writing", "capture.written:2")
TOKEN = "service-token-of-the-test"


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
        ids = [self._chat() for _ in range(times)]
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

    def _chat(self) -> str:
        body = {"model": BASE_ID, "messages": [{"role": "user", "content": "Say a."}], "max_tokens": 4}
        answer = self._gateway("POST", "/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

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
def running(folder: Path) -> Iterator[Platform]:
    """Starts both below `folder` and ends them with the block."""
    environment = simulated_environment(folder) | {"TUNESMITH_SERVICE_TOKEN": TOKEN}
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


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_no_death_doubles_a_capture_and_few_lose_one(tmp_path: Path) -> None:
    with running(tmp_path) as platform:
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
