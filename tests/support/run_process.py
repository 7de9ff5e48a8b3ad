"""A training run as a process of its own, and waiting for what it does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.training_server import TOKEN, TrainingServer


def start_run(
    server: TrainingServer, cache: Path, folder: Path, settings: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts the server's attempt. Its log is `folder / "log"`, its scratch folder beside it."""
    token = folder / "token"
    token.write_text(TOKEN)
    environment = os.environ | {
        "TUNESMITH_CONTROL_PLANE": f"127.0.0.1:{server.port}",
        "TUNESMITH_ATTEMPT_TOKEN_FILE": str(token),
        "TUNESMITH_CACHE_DIR": str(cache),
        "TUNESMITH_WORK_DIR": str(folder / "scratch"),
        "OMP_NUM_THREADS": "1",
        **(settings or {}),
    }
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "tunesmith_trainer", "run"], env=environment, stderr=log)


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    """Returns once the condition holds; it is an error if it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
