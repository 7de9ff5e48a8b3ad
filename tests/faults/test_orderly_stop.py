"""A platform on one machine that is told to stop: what its gateway counted is kept, and what it held is taken back."""

from __future__ import annotations

import time
from pathlib import Path

from tests.conformance.platform_under_test import simulated_environment
from tests.support.artifacts import BASE_ID
from tests.support.live_server import LiveServer, wait_until

CHAT = {"model": BASE_ID, "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 2}


def test_a_stop_loses_nothing_that_was_counted_and_leaves_no_replica(tmp_path: Path) -> None:
    environment = simulated_environment(tmp_path)
    with LiveServer(tmp_path / "home", inference=True, environment=environment) as server:
        wait_until(lambda: _answers(server), 60, "the base model does not answer")
        assert all(_answers(server) for _ in range(3))
        assert server.stop() == 0
    with LiveServer(tmp_path / "home", environment=environment) as server:
        assert _requests(server) == 4
        assert server.request("GET", f"/models/{BASE_ID}").json()["serving"]["state"] == "not_loaded"


def _answers(server: LiveServer) -> bool:
    return server.request("POST", "/chat/completions", json=CHAT).status_code == 200


def _requests(server: LiveServer) -> int:
    start = int(time.time()) - 86400
    page = server.request("GET", "/organization/usage/completions", params={"start_time": start}).json()
    return sum(result["num_model_requests"] for bucket in page["data"] for result in bucket["results"])
