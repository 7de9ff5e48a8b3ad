"""Owns which experiment trackers this installation can feed, and the environment that their clients get.

It must not know jobs. The secrets are the operator's: they stay in the environment and reach nobody but the clients.
"""

from __future__ import annotations

import importlib.util
import os

from tunesmith_server.config import Settings

LABELS = {"wandb": "Weights & Biases", "mlflow": "MLflow"}

_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
_VARIABLES = {"wandb": "WANDB_API_KEY", "mlflow": "MLFLOW_TRACKING_URI"}
# Both clients would tell their makers how they are used; an operator may set these otherwise.
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


def why_not(tracker: str, settings: Settings) -> str | None:
    """What the operator must do before jobs can name the tracker; None when they can."""
    ask = f"{LABELS[tracker]} is not set up here. Leave it out of integrations, or ask the operator to"
    if not _is_configured(tracker, settings):
        return f"{ask} set {_VARIABLES[tracker]} for the server."
    if tracker == "mlflow" and _is_folder(settings):
        return f"{ask} set {_VARIABLES[tracker]} to a server or a database: MLflow has given up folders."
    if importlib.util.find_spec(tracker) is None:
        return f"{ask} install {_PACKAGES[tracker]}: pip install 'tunesmith-platform[trackers]'."
    return None


def client_environment() -> dict[str, str]:
    """The server's environment without the server's own secrets."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUNESMITH_", "AWS_"))}
    return _QUIET | kept


def redacted(text: str) -> str:
    """The text without the trackers' secrets, as far as the environment holds them."""
    for name, value in os.environ.items():
        if name.startswith(("WANDB_API_KEY", "MLFLOW_TRACKING_")) and len(value) > 3:
            text = text.replace(value, f"<{name}>")
    return text


def _is_folder(settings: Settings) -> bool:
    address = "" if settings.mlflow_tracking_uri is None else settings.mlflow_tracking_uri.get_secret_value()
    return address.startswith("file:") or not ("://" in address or address.startswith("databricks"))


def _is_configured(tracker: str, settings: Settings) -> bool:
    if tracker == "mlflow":
        return settings.mlflow_tracking_uri is not None
    return settings.wandb_api_key is not None or settings.wandb_mode == "offline"
