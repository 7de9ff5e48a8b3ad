"""Owns the choice of the executor that the settings name.

It must not know how an executor works.
"""

from __future__ import annotations

from tunesmith_server.config import Settings
from tunesmith_server.executors.base import Executor
from tunesmith_server.executors.local import LocalExecutor


def open_executor(settings: Settings) -> Executor:
    """The executor for runs of this installation."""
    command = (str(settings.trainer_python), "-m", "tunesmith_trainer", "run")
    return LocalExecutor(settings.home / "runs", settings.cache_dir, command)
