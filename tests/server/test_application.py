"""Everything that the contract promises is wired to both transports."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import grpc.aio
import httpx
import pytest
from fastapi import FastAPI
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.architecture.source_tree import ROOT
from tests.support.artifacts import BASE_SHAPES, safetensors_bytes
from tests.support.clock import MovableClock
from tests.support.core import open_core
from tests.support.fake_importer import write_fake_importer
from tunesmith_server import application as wiring
from tunesmith_server.application import Application
from tunesmith_server.auth import Signer
from tunesmith_server.config import Settings
from tunesmith_server.executors.docker import DockerExecutor
from tunesmith_server.executors.kubernetes import KubernetesExecutor
from tunesmith_server.executors.local import LocalExecutor
from tunesmith_server.executors.slurm import SlurmExecutor
from tunesmith_server.inference_proxy import InferenceProxy

ROUTES = {
    "DELETE /v1/files/{file_id}",
    "DELETE /v1/models/{model}",
    "DELETE /v1/deployments/{name}",
    "GET /v1/chat/completions",
    "GET /v1/chat/completions/{completion_id}",
    "GET /v1/chat/completions/{completion_id}/messages",
    "POST /v1/chat/completions/{completion_id}",
    "DELETE /v1/chat/completions/{completion_id}",
    "POST /v1/capture_datasets",
    "GET /v1/deployments",
    "GET /v1/deployments/{name}",
    "GET /v1/deployments/{name}/versions",
    "POST /v1/deployments",
    "POST /v1/deployments/{name}",
    "POST /v1/deployments/{name}/rollback",
    "GET /v1/files",
    "GET /v1/files/{file_id}",
    "GET /v1/files/{file_id}/content",
    "GET /v1/fine_tuning/jobs",
    "GET /v1/fine_tuning/jobs/{job_id}",
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints",
    "GET /v1/fine_tuning/jobs/{job_id}/events",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /v1/model_archives/{model}",
    "GET /v1/organization/audit_logs",
    "GET /v1/organization/projects",
    "GET /v1/organization/projects/{project_id}",
    "GET /v1/organization/projects/{project_id}/api_keys",
    "GET /v1/organization/projects/{project_id}/rate_limits",
    "GET /v1/organization/usage/completions",
    "GET /v1/uploads/{upload_id}",
    "GET /v1/usage",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/embeddings",
    "POST /v1/files",
    "POST /v1/fine_tuning/jobs",
    "POST /v1/fine_tuning/jobs/{job_id}/cancel",
    "POST /v1/organization/projects",
    "POST /v1/organization/projects/{project_id}/api_keys/{api_key_id}/rotate",
    "POST /v1/organization/projects/{project_id}/archive",
    "POST /v1/uploads",
    "POST /v1/uploads/{upload_id}/cancel",
    "POST /v1/uploads/{upload_id}/complete",
    "POST /v1/uploads/{upload_id}/parts",
}


@pytest.fixture
def swept_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "_SWEEP_SECONDS", 0.05)


@pytest.fixture
async def application(tmp_path: Path) -> AsyncIterator[Application]:
    python = write_fake_importer(tmp_path, safetensors_bytes(BASE_SHAPES))
    catalogue = tmp_path / "base_models.yaml"
    catalogue.write_text("- {id: toy, source: 'toy:fine'}\n")
    cache = tmp_path / "cache"
    cache.mkdir()
    settings = {"trainer_python": python, "base_models": catalogue, "cache_dir": cache}
    # Days later than what the test stores, so that a sweep finds it old.
    async with open_core(tmp_path / "home", MovableClock(time.time() + 3 * 86400), **settings) as core:
        made = Application(core, InferenceProxy("", reason_for_none="Inference is off."))
        await made.start()
        yield made
        await made.stop()


def routes(app: FastAPI) -> set[str]:
    paths = app.openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


async def served(application: Application) -> set[str]:
    port = await application.grpc.start("127.0.0.1:0")
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = await stub.ServerReflectionInfo(iter([request])).read()
    await application.grpc.stop(0)
    return {service.name for service in answer.list_services_response.service}


async def test_every_route_of_the_contract_is_there(application: Application) -> None:
    assert routes(application.http) >= ROUTES


async def test_every_service_of_the_contract_is_there(application: Application) -> None:
    promised = set()
    for file in (ROOT / "proto/tunesmith").rglob("*.proto"):
        text = file.read_text()
        package = re.findall(r"^package (\S+);", text, re.MULTILINE)[0]
        promised |= {f"{package}.{name}" for name in re.findall(r"^service (\w+)", text, re.MULTILINE)}

    assert await served(application) >= promised


async def test_what_calls_leave_behind_is_written_beside_them(application: Application, tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {(tmp_path / 'home' / 'api_key').read_text().strip()}"}
    transport = httpx.ASGITransport(application.http)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        await client.post("/v1/organization/projects", json={"name": "A", "id": "a"})
        async with asyncio.timeout(30):
            while not (logs := (await client.get("/v1/organization/audit_logs")).json()["data"]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert [(line["type"], line["target_id"]) for line in logs] == [("project.created", "a")]
        await application.stop()
        [key] = (await client.get("/v1/organization/projects/default/api_keys")).json()["data"]
        assert key["last_used_at"] == logs[0]["effective_at"]


async def test_a_start_makes_the_key_and_imports_the_base_model(application: Application, tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {(tmp_path / 'home' / 'api_key').read_text().strip()}"}
    transport = httpx.ASGITransport(application.http)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        async with asyncio.timeout(30):
            while (await client.get("/v1/models/toy")).status_code != 200:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.post("/v1/completions", json={})).json()["error"]["code"] == "inference_disabled"


async def test_a_stop_leaves_no_task_behind(application: Application) -> None:
    await application.stop()

    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.usefixtures("swept_often", "application")
async def test_what_ended_runs_left_is_swept(tmp_path: Path) -> None:
    objects = tmp_path / "home" / "objects"
    orphans = [objects / "runs" / "ftjob-gone" / "e1" / "x", objects / "revisions" / ("0" * 64) / "manifest.json"]
    for orphan in orphans:
        orphan.parent.mkdir(parents=True)
        orphan.touch()
    async with asyncio.timeout(30):
        while any(orphan.exists() for orphan in orphans):  # noqa: ASYNC110 (files)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("local", LocalExecutor),
        ("docker", DockerExecutor),
        ("kubernetes", KubernetesExecutor),
        ("slurm", SlurmExecutor),
    ],
)
def test_the_settings_choose_the_executor(
    tmp_path: Path, name: Literal["local", "docker", "kubernetes", "slurm"], kind: type
) -> None:
    settings = Settings(
        home=tmp_path,
        executor=name,
        slurm_options="--partition='my gpus'",
        kubernetes_kubeconfig=tmp_path / "config",
        kubernetes_tolerations=({"operator": "Exists"},),
    )
    assert isinstance(wiring._executor(settings, Signer(b"secret")), kind)
