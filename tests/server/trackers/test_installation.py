"""Which trackers can be named, and what their clients are not told."""

from __future__ import annotations

import pytest

from tunesmith_server.config import Settings
from tunesmith_server.trackers.installation import client_environment, redacted, why_not


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("tracker", "variable"), [("wandb", "WANDB_API_KEY"), ("mlflow", "MLFLOW_TRACKING_URI")])
def test_the_operator_is_told_what_to_set_and_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tracker: str, variable: str
) -> None:
    assert f"set {variable}" in (why_not(tracker, Settings()) or "")
    monkeypatch.setenv(variable, "https://something")
    assert why_not(tracker, Settings()) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'tunesmith-platform[trackers]'" in (why_not(tracker, Settings()) or "")


@pytest.mark.parametrize("address", ["file:///var/lib/mlruns", "./mlruns", "/var/lib/mlruns", "mlruns"])
def test_folders_which_mlflow_takes_no_more_are_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert "set MLFLOW_TRACKING_URI to a server or a database" in (why_not("mlflow", Settings()) or "")


def test_clients_get_no_secret_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNESMITH_SECRET_KEY", "TUNESMITH_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("WANDB_API_KEY", "for the client")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    environment = client_environment()
    assert "hidden" not in environment.values()
    assert (environment["WANDB_API_KEY"], environment["WANDB_ERROR_REPORTING"]) == ("for the client", "true")
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_what_a_client_says_is_told_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass-word")
    said = redacted("key 0123456789 and pass-word were refused")
    assert said == "key <WANDB_API_KEY> and <MLFLOW_TRACKING_PASSWORD> were refused"
