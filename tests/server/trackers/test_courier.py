"""A courier answers, or says in time why not; its secrets stay where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith_server.trackers import courier
from tunesmith_server.trackers.courier import CourierError

OPENING = {
    "tracker": "mlflow",
    "job_id": "ftjob-1",
    "base_model": "toy",
    "target": {"experiment": "e", "run_name": None},
    "settings": {"seed": 7},
}


async def test_what_a_client_raises_is_an_error_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden@127.0.0.1:9")
    async with courier.started(tmp_path) as carrier:
        with pytest.raises(CourierError, match="MlflowException") as caught:
            await carrier.ask("open", OPENING, 60)
    assert "hidden" not in str(caught.value)


async def test_silence_is_an_error_after_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    async with courier.started(tmp_path) as carrier:
        with pytest.raises(CourierError, match="no answer to 'open'"):
            await carrier.ask("open", OPENING, 0.01)


async def test_a_process_that_ends_is_an_error(tmp_path: Path) -> None:
    async with courier.started(tmp_path) as carrier:
        with pytest.raises(CourierError, match="KeyError"):
            await carrier.ask("open", {"tracker": "mlflow"}, 60)
        with pytest.raises(CourierError, match="the process ended"):
            await carrier.ask("log", [], 60)
