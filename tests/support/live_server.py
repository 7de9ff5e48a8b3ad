"""Owns `tunesmithd up` as a real process: started until it says ready, asked over HTTP, stopped or killed.

It must not know what a test does with it. The cache of base models is shared by all of them, as on a real machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.ports import free_ports

_TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.05
_RUN_ENDED = "The run of the cancelled job has ended"
# Settings of the machine that a test may rely on; every other TUNESMITH_* of the caller stays outside.
_KEPT_SETTINGS = ("TUNESMITH_CACHE_DIR", "TUNESMITH_ENGINE_PYTHON")


class LiveServer:
    """A platform on `home`. As a context manager it is started, and ended with everything that it started.

    Ports are chosen once, so that a restarted server is found where it was.
    """

    def __init__(self, home: Path, *, inference: bool = False, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.port, self.grpc_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc_address = f"127.0.0.1:{self.grpc_port}"
        self.ready_line = ""
        self._inference = inference
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0
        self._out = Path(tempfile.mkdtemp(prefix="tunesmith-live-"))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel_jobs()
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._running.pid

    @property
    def api_key(self) -> str:
        """The first key, as the server wrote it."""
        return self._environment.get("TUNESMITH_API_KEY") or (self.home / "api_key").read_text().strip()

    @property
    def stdout(self) -> str:
        """What the newest process wrote to standard output."""
        return (self._out / f"{self._started}.out").read_text()

    @property
    def stderr(self) -> str:
        """What the newest process wrote to standard error."""
        return (self._out / f"{self._started}.err").read_text()

    def start(self, **settings: str) -> None:
        """Starts the server, with these settings for this once, and returns when it says ready."""
        self.spawn(**settings)
        wait_until(
            lambda: self.stdout.endswith("\n") or self.has_ended(), _START_SECONDS, "the server did not get ready"
        )
        if self.has_ended():
            raise AssertionError(f"the server ended while it started:\n{self.stderr[-4000:]}")
        self.ready_line = self.stdout

    def spawn(self, **settings: str) -> None:
        """Starts the server without waiting; settings as in `start`, `failpoint="…"` for TUNESMITH_FAILPOINT."""
        command = [str(Path(sys.executable).with_name("tunesmithd")), "up", "--home", str(self.home)]
        command += ["--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        if not self._inference:
            command.append("--no-inference")
        kept = {n: v for n, v in os.environ.items() if not n.startswith("TUNESMITH_") or n in _KEPT_SETTINGS}
        extra = {f"TUNESMITH_{name.upper()}": value for name, value in settings.items()}
        self._started += 1
        out, err = (self._out / f"{self._started}.{kind}" for kind in ("out", "err"))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=kept | self._environment | extra
            )

    def kill(self) -> None:
        """kill -9, as a crash does it."""
        self._running.kill()
        self._running.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self._running.poll() is None:
            self._running.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit code, once the server has ended by itself."""
        try:
            return self._running.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not end:\n{self.stderr[-4000:]}") from None

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One REST call with the first key unless `headers` have another; `path` starts below /v1."""
        headers = httpx.Headers({"Authorization": f"Bearer {self.api_key}"})
        headers.update(options.pop("headers", {}))
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.request(method, f"{self.url}/v1{path}", headers=headers, **options)

    def job(self, job_id: str) -> dict[str, Any]:
        """A fine-tune as the wire shows it."""
        answer = self.request("GET", f"/fine_tuning/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def wait_for_job(self, job_id: str, timeout_seconds: float = 300) -> dict[str, Any]:
        """The fine-tune once it has ended, well or not."""
        wait_until(
            lambda: self.job(job_id)["status"] in _TERMINAL,
            timeout_seconds,
            lambda: f"the job did not end: {self.job(job_id)}",
        )
        return self.job(job_id)

    def cancel_jobs(self) -> None:
        """Ends every run: a server that stops leaves them alive, and a test must leave nothing behind."""
        if self.has_ended():
            return
        jobs = self.request("GET", "/fine_tuning/jobs", params={"limit": 100}).json()["data"]
        live = [job["id"] for job in jobs if job["status"] not in _TERMINAL]
        for job_id in live:
            self.request("POST", f"/fine_tuning/jobs/{job_id}/cancel")
        for job_id in live:
            wait_until(partial(self._run_has_ended, job_id), _STOP_SECONDS, f"a run of {job_id} lives on")

    def _run_has_ended(self, job_id: str) -> bool:
        """Whether a cancelled job has no process any more: the wire says cancelled before that."""
        events = self.request("GET", f"/fine_tuning/jobs/{job_id}/events", params={"limit": 100}).json()["data"]
        return not self._runs() or any(event["message"] == _RUN_ENDED for event in events)

    def _runs(self) -> list[Path]:
        return list((self.home / "runs").glob("*"))

    def is_ready(self) -> bool:
        """Whether the newest process has said ready."""
        return self.stdout.endswith("\n")

    def has_ended(self) -> bool:
        """Whether there is no process now."""
        return self._process is None or self._process.poll() is not None

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process


def wait_until(condition: Callable[[], bool], seconds: float, failure: str | Callable[[], str]) -> None:
    """Returns once the condition holds; AssertionError after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(failure if isinstance(failure, str) else failure())
        time.sleep(_POLL_SECONDS)
