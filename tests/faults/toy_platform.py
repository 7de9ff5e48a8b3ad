"""Owns a platform to break: a real server with a real, scripted trainer, that can be killed at named points.

It must not know what must hold afterwards: promises.py does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx

from tests.faults.promises import Witness, broken_promises, unrest
from tests.faults.receiver import Receiver
from tests.support.artifacts import BASE_ID, BASE_SHAPES, adapter_files, safetensors_bytes
from tests.support.clock import MovableClock
from tests.support.core import make_core
from tests.support.fake_importer import write_fake_importer
from tests.support.fake_trainer import Controls, write_fake_python
from tests.support.live_server import LiveServer, wait_until
from tunesmith_proto.registry.v1 import serving_pb2, serving_pb2_grpc
from tunesmith_server.auth import Signer, load_secret
from tunesmith_server.config import Settings
from tunesmith_server.fine_tunes.announcements import EVENT_TYPES

ROWS = b'{"prompt": "Say a.", "completion": "a"}\n' * 10
REFUSED_ROWS = ROWS + b'{"prompt": "Say b.", "completion": "refuse"}\n'

_LIMIT_SECONDS = 120.0
"""Longer than the claim on a webhook's delivery whose sender died."""


class TryAgainError(Exception):
    """The server refused a call for the moment."""


class ToyPlatform:
    """A server on `folder`/home, its trainer's `controls`, and what its client was told.

    `environment` is the server's alone; `settings` are also those by which its database and store are read.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, **settings: str) -> None:
        self.controls = Controls(folder / "cache")
        self.controls.write_adapter(adapter_files())
        catalogue = folder / "base_models.yaml"
        catalogue.write_text(f"- id: {BASE_ID}\n  source: toy:base\n")
        importer = write_fake_importer(folder, safetensors_bytes(BASE_SHAPES))
        given = {
            "cache_dir": str(self.controls.folder.parent),
            "base_models": str(catalogue),
            "trainer_python": str(write_fake_python(folder, importer)),
            "lease_ttl_seconds": "3",
            "leader_ttl_seconds": "1",
            "webhook_allow_private": "true",
        } | settings
        named = {f"TUNESMITH_{name.upper()}": value for name, value in given.items()}
        self._tracker = folder / "mlflow.db"
        named["MLFLOW_TRACKING_URI"] = f"sqlite:///{self._tracker}"
        self.server = LiveServer(folder / "home", environment=named | dict(environment or {}))
        self.files: dict[str, str] = {}
        """Ids of files that were acknowledged, by the key of what they are for."""
        self.jobs: dict[str, str] = {}
        """Ids of jobs that were acknowledged, by idempotency key."""
        self.captures: set[str] = set()
        """Those whose report was answered."""
        self.memory: dict[str, Any] = {}
        """What else a client remembers."""
        self.receiver: Receiver | None = None
        self._settings: dict[str, Any] = dict(settings)
        self._witness = Witness()

    def start(self, failpoint: str = "") -> None:
        """Starts the server, armed or not, and returns when it serves or is dead already."""
        self.server.spawn(failpoint=failpoint)
        self._wait(lambda: self.server.is_ready() or self.server.has_ended(), "the server did not start")

    def create(self, key: str, content: bytes = ROWS, **body: Any) -> str:
        """Uploads the rows, makes a job and returns its id; what was answered before is not made again.

        Raises TryAgainError where the server asks for that.
        """
        if key not in self.files:
            files = {"file": ("rows.jsonl", content)}
            answer = self.server.request("POST", "/files", files=files, data={"purpose": "fine-tune"})
            _require_success(answer)
            self.files[key] = str(answer.json()["id"])
        answer = self.server.request(
            "POST",
            "/fine_tuning/jobs",
            json={"model": BASE_ID, "training_file": self.files[key], **body},
            headers={"Idempotency-Key": key},
        )
        _require_success(answer)
        job_id = str(answer.json()["id"])
        assert self.jobs.setdefault(key, job_id) == job_id, "one key, two jobs"
        return job_id

    def capture(self, key: str) -> None:
        """Reports a chat completion as a gateway does, again and again until that is answered."""
        sent = serving_pb2.Capture(
            id=f"chatcmpl-{key.replace('.', '_')}",
            project_id="default",
            key_id="key_1",
            model=BASE_ID,
            created=int(time.time()),
            finish_reason="stop",
            messages='[{"role": "user", "content": "Say a."}]',
            answer='{"role": "assistant", "content": "a"}',
        )
        token = Signer(load_secret(self.server.home)).service_token()
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            answer = serving_pb2_grpc.ServingServiceStub(channel).ReportCaptures(
                serving_pb2.ReportCapturesRequest(captures=[sent]),
                metadata=(("authorization", f"Bearer {token}"),),
                timeout=_LIMIT_SECONDS,
            )
        assert not answer.refused
        self.captures.add(sent.id)

    def captured(self) -> list[str]:
        """What is kept, as often as it is."""
        page = self.server.request("GET", "/chat/completions", params={"limit": 100}).json()
        return [each["id"] for each in page["data"]]

    def steer(self, job_id: str, action: str) -> None:
        """Cancels, pauses or resumes; refused only where an earlier, unanswered call had its effect."""
        answer = self.server.request("POST", f"/fine_tuning/jobs/{job_id}/{action}")
        assert answer.status_code in (200, 400), answer.text

    @contextlib.contextmanager
    def held(self, step: int) -> Iterator[None]:
        """Runs wait before this step until the block ends; if the server dies in it, until it has been done again."""
        self.controls.hold(step)
        yield
        self.controls.release(step)

    def listen(self) -> None:
        """Has a receiver of webhooks hear of every job from now on."""
        if self.receiver is None:
            self.receiver = Receiver()
        if "endpoint" not in self.memory:
            body = {"name": "all", "url": self.receiver.url, "event_types": sorted(EVENT_TYPES.values())}
            answer = self.server.request("POST", "/webhook_endpoints", json=body)
            assert answer.status_code == 200, answer.text
            self.memory["endpoint"] = answer.json()["id"]

    def wait_for(self, job_id: str, line: str) -> None:
        """Returns once a line of the job's history begins so."""
        self._wait(lambda: self.says(job_id, line), f"{line} did not come")

    def says(self, job_id: str, line: str) -> bool:
        """Whether a line of the job's history begins so."""
        page = self.server.request("GET", f"/fine_tuning/jobs/{job_id}/events", params={"limit": 100}).json()
        return any(event["message"].startswith(line) for event in page["data"])

    def tracked_steps(self, job_id: str) -> list[int]:
        """The steps that the tracker has of a job, as often as it has them."""
        query = (
            "SELECT step FROM metrics JOIN tags ON tags.run_uuid = metrics.run_uuid "
            "WHERE tags.key = 'tunesmith.job_id' AND tags.value = ? AND metrics.key = 'train_loss' ORDER BY step"
        )
        with contextlib.closing(sqlite3.connect(self._tracker)) as connection:
            return [step for (step,) in connection.execute(query, (job_id,))]

    def wait_until_dead(self) -> None:
        """Returns once the armed point has been reached."""
        self._wait(self.server.has_ended, "the point was not reached")
        assert self.server.wait() == -9, self.server.stderr[-4000:]

    def settle(self) -> None:
        """Returns once every job has ended and nothing is left to do."""
        self._wait(lambda: not asyncio.run(self._unrest()), lambda: asyncio.run(self._unrest()))

    def check(self) -> None:
        """Raises AssertionError with every promise that is broken now; what has ended must be as it was before."""
        broken = asyncio.run(self._broken())
        assert not broken, "\n".join(broken)

    def close(self) -> None:
        """Ends the server and all that it started."""
        if self.receiver is not None:
            self.receiver.close()
        self.server.__exit__(None, None, None)

    def _wait(self, condition: Callable[[], bool], failure: str | Callable[[], str]) -> None:
        wait_until(condition, _LIMIT_SECONDS, failure)

    async def _unrest(self) -> str:
        core = make_core(Settings(home=self.server.home, **self._settings), MovableClock(time.time()))
        try:
            return await unrest(core)
        finally:
            await core.database.close()

    async def _broken(self) -> list[str]:
        core = make_core(Settings(home=self.server.home, **self._settings), MovableClock(time.time()))
        try:
            return await broken_promises(core, self._witness, self.jobs.values(), self.controls.notes)
        finally:
            await core.database.close()


@contextlib.contextmanager
def unanswered() -> Iterator[None]:
    """Around calls during which the server may die: a client sees a broken connection."""
    with contextlib.suppress(httpx.TransportError, grpc.RpcError):
        yield


def _require_success(answer: httpx.Response) -> None:
    if answer.status_code in (503, 507):
        raise TryAgainError(answer.json()["error"]["code"])
    assert answer.status_code == 200, answer.text
