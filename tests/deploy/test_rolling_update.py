"""Several control planes on one database, one store and one cluster are replaced while a run trains; nobody notices."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.service import Service
from tests.support import fake_trainer
from tests.support.artifacts import BASE_ID, BASE_SHAPES, adapter_files, safetensors_bytes
from tests.support.fake_importer import write_fake_importer
from tests.support.fake_trainer import Controls
from tests.support.kubernetes_cluster import KubernetesCluster
from tests.support.live_server import LiveServer
from tests.support.postgres import PostgresServer
from tests.support.s3_server import BUCKET, S3Server

API_KEY = "ts-" + "k" * 40
ROWS = b'{"prompt": "Say a.", "completion": "a"}\n' * 10
HELD = 4


class Replicas:
    """Control planes behind one address, as a Deployment and its Service hold them."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.http, self.grpc = Service(), Service()
        self.answered = 0
        self._folder = folder
        self._environment = environment
        self._servers: list[LiveServer] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Nothing runs yet; everything ends with the block."""
        async with self.http.running(), self.grpc.running():
            yield
            for server in self._servers:
                server.stop()

    async def add(self) -> None:
        """Starts one more; it takes calls once it is ready."""
        addresses = {
            "TUNESMITH_PUBLIC_URL": f"http://127.0.0.1:{self.http.port}",
            "TUNESMITH_PUBLIC_GRPC_ADDRESS": f"127.0.0.1:{self.grpc.port}",
        }
        home = self._folder / f"home-{len(list(self._folder.glob('home-*')))}"
        server = LiveServer(home, environment={**self._environment, **addresses})
        await asyncio.to_thread(server.start)
        self._servers.append(server)
        self._point()

    async def remove_oldest(self, *, crash: bool = False) -> None:
        """Takes the oldest out of service and ends it, in order or by SIGKILL."""
        server = self._servers.pop(0)
        if crash:
            server.kill()
        self._point()
        if not crash:
            await self.http.drained(server.port)
            assert await asyncio.to_thread(server.stop) == 0

    async def replace_all(self, *, crash: bool = False) -> None:
        """As a rolling update does it: one more, one less, until none of the old ones is left."""
        for _ in list(self._servers):
            await self.add()
            await self.remove_oldest(crash=crash)

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """A client asks all the time; AssertionError where one of its calls was not answered."""
        task = asyncio.create_task(self._use())
        yield
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), f"after {self.answered} answers: {ended!r}"
        assert self.answered > 0

    async def _use(self) -> None:
        while True:
            answer = await self.call("GET", "/fine_tuning/jobs")
            assert answer.status_code == 200, answer.text
            self.answered += 1

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, on a connection of its own."""
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=60) as client:
            return await client.request(method, f"http://127.0.0.1:{self.http.port}/v1{path}", **options)

    def _point(self) -> None:
        self.http.backends = [server.port for server in self._servers]
        self.grpc.backends = [server.grpc_port for server in self._servers]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[KubernetesCluster]:
    async with KubernetesCluster(tmp_path) as running:
        yield running


@pytest.fixture
def controls(tmp_path: Path, cluster: KubernetesCluster) -> Controls:
    """The test's side of the trainer that the image of runs holds."""
    controls = Controls(tmp_path / "runs")
    controls.write_adapter(adapter_files())
    image = tmp_path / "image"
    image.mkdir()
    program = (
        f'#!/bin/sh\nTUNESMITH_CACHE_DIR="{tmp_path / "runs"}" exec "{sys.executable}" "{fake_trainer.__file__}"\n'
    )
    (image / "python3").write_text(program)
    (image / "python3").chmod(0o755)
    cluster.node.path = str(image)
    return controls


@pytest.fixture
async def replicas(
    tmp_path: Path, cluster: KubernetesCluster, postgres: PostgresServer, s3_server: S3Server
) -> AsyncIterator[Replicas]:
    """Two control planes with a toy base model."""
    catalogue = tmp_path / "base_models.yaml"
    catalogue.write_text(f"- id: {BASE_ID}\n  source: toy:base\n")
    settings = {
        "api_key": API_KEY,
        "secret_key": "s" * 64,
        "database_url": postgres.create_database(),
        "storage_url": f"s3://{BUCKET}/{tmp_path.name}",
        "executor": "kubernetes",
        "kubernetes_kubeconfig": str(cluster.kubeconfig),
        "base_models": str(catalogue),
        "cache_dir": str(tmp_path / "runs"),
        "trainer_python": str(write_fake_importer(tmp_path, safetensors_bytes(BASE_SHAPES))),
        "leader_ttl_seconds": "1",
    }
    named = {f"TUNESMITH_{name.upper()}": value for name, value in settings.items()}
    made = Replicas(tmp_path, s3_server.environment | named)
    async with made.running():
        await made.add()
        await made.add()
        yield made


@pytest.mark.timeout(300)
@pytest.mark.parametrize("crash", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["in order", "by kill -9"])
async def test_a_run_outlives_every_control_plane(replicas: Replicas, controls: Controls, crash: bool) -> None:
    job_id = await begun(replicas, controls)
    if crash:
        await replicas.replace_all(crash=True)
    else:
        async with replicas.in_use():
            await replicas.replace_all()
    controls.release(HELD)
    job = await until(replicas, f"/fine_tuning/jobs/{job_id}", lambda job: job["status"] in ("succeeded", "failed"))
    assert job["status"] == "succeeded", job["error"]
    assert [note.split()[-1] for note in controls.notes(job_id)] == ["0"], "the run was lost and begun anew"
    models = (await replicas.call("GET", "/models")).json()["data"]
    assert job["fine_tuned_model"] in {model["id"] for model in models}


async def begun(replicas: Replicas, controls: Controls) -> str:
    """A job whose run has a checkpoint and waits."""
    await until(replicas, "/models", lambda models: models["data"])
    files = {"file": ("rows.jsonl", ROWS)}
    file = await replicas.call("POST", "/files", files=files, data={"purpose": "fine-tune"})
    controls.hold(HELD)
    body = {"model": BASE_ID, "training_file": file.json()["id"]}
    job_id = str((await replicas.call("POST", "/fine_tuning/jobs", json=body)).json()["id"])
    await until(replicas, f"/fine_tuning/jobs/{job_id}/checkpoints", lambda checkpoints: checkpoints["data"])
    return job_id


async def until(replicas: Replicas, path: str, holds: Callable[[Any], Any]) -> Any:
    """What is at the path, once it is so."""
    async with asyncio.timeout(120):
        while not holds(shown := (await replicas.call("GET", path)).json()):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
    return shown
