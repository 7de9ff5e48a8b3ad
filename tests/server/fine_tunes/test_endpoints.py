"""Jobs over REST: the official client unmodified, the exact wire, and the errors it must understand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from tests.support.artifacts import BASE_ID
from tests.support.asgi_server import serving
from tests.support.factories import Platform
from tunesmith_server.auth import Authenticator
from tunesmith_server.fine_tunes.endpoints import create_router
from tunesmith_server.http_app import create_http_app
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
async def app(platform: Platform) -> FastAPI:
    """An app with nothing but jobs."""
    authenticator = Authenticator(ProjectsService(platform.core), platform.core.signer)
    return create_http_app(platform.core, authenticator, [create_router(platform.fine_tunes)])


@pytest.fixture
async def client(platform: Platform, app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a key of the default project."""
    key = (await ProjectsService(platform.core).create_key(DEFAULT_PROJECT, "test")).key
    headers = {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as made:
        yield made


@pytest.fixture
async def official(app: FastAPI, client: httpx.AsyncClient) -> AsyncIterator[openai.AsyncOpenAI]:
    """The openai client, as users have it."""
    key = client.headers["authorization"].removeprefix("Bearer ")
    async with serving(app) as url, openai.AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0) as made:
        yield made


async def test_a_job_has_every_key_on_the_wire(platform: Platform, client: httpx.AsyncClient) -> None:
    answer = await client.post(JOBS, json={"model": BASE_ID, "training_file": platform.training_file, "seed": 1})
    auto = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    job = answer.json()
    assert job == {
        "id": job["id"],
        "object": "fine_tuning.job",
        "created_at": int(platform.core.clock()),
        "finished_at": None,
        "model": BASE_ID,
        "fine_tuned_model": None,
        "organization_id": "default",
        "status": "validating_files",
        "error": None,
        "hyperparameters": auto,
        "method": {"type": "supervised", "supervised": {"hyperparameters": auto}},
        "training": {"weights": "lora", "lora_rank": "auto", "lora_alpha": "auto"},
        "training_file": platform.training_file,
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "seed": 1,
        "user_provided_suffix": None,
        "metadata": None,
        "integrations": None,
        "estimated_finish": None,
        "progress": None,
        "evaluation": None,
    }


async def test_the_official_client_creates_reads_lists_follows_and_cancels(
    platform: Platform, official: openai.AsyncOpenAI
) -> None:
    jobs = official.fine_tuning.jobs
    made = await jobs.create(
        model="gpt-4o-mini-2024-07-18",
        training_file=platform.training_file,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        metadata={"team": "blue"},
        extra_body={"training": {"weights": "full"}},
    )
    await jobs.create(model=BASE_ID, training_file=platform.training_file)

    assert (await jobs.retrieve(made.id)).hyperparameters.n_epochs == 2
    assert [job.id async for job in jobs.list(limit=1, metadata={"team": "blue"})] == [made.id]
    assert len([job async for job in jobs.list(limit=1)]) == 2
    assert (await jobs.cancel(made.id)).status == "cancelled"
    events = [event.message async for event in jobs.list_events(made.id, limit=1)]
    assert events == ["Fine-tuning job cancelled", f"Created fine-tuning job: {made.id}"]
    checkpoints = await jobs.checkpoints.list(made.id)
    assert (checkpoints.data, checkpoints.has_more) == ([], False)


async def test_a_repeated_create_gives_the_same_job(platform: Platform, client: httpx.AsyncClient) -> None:
    body = {"model": BASE_ID, "training_file": platform.training_file}
    key = {"idempotency-key": "k1"}
    first, second = [(await client.post(JOBS, json=body, headers=key)).json() for _ in range(2)]
    assert first["id"] == second["id"]
    conflict = await client.post(JOBS, json=body | {"seed": 1}, headers=key)
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert conflict.headers["x-should-retry"] == "false"


async def test_jobs_without_metadata_can_be_asked_for(platform: Platform, client: httpx.AsyncClient) -> None:
    plain = await platform.create()
    await platform.create(metadata={"a": "b"})
    answer = (await client.get(JOBS, params={"metadata": "null"})).json()
    assert [job["id"] for job in answer["data"]] == [plain]


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code", "param"),
    [
        ("POST", "", {"json": {"model": "gpt-5", "training_file": "x"}}, 400, "model_not_found", "model"),
        ("POST", "", {"json": {"model": BASE_ID, "training_file": "x"}}, 400, "file_not_found", "training_file"),
        ("POST", "", {"json": {"model": BASE_ID}}, 400, "missing_required_parameter", "training_file"),
        ("POST", "", {"content": b"{"}, 400, "invalid_json", None),
        ("GET", "?limit=0", {}, 400, "invalid_value", "limit"),
        ("GET", "?limit=x", {}, 400, "invalid_type", "limit"),
        ("GET", "?after=ftjob-x", {}, 400, "invalid_cursor", "after"),
        ("GET", "?metadata[]=x", {}, 400, "invalid_value", "metadata"),
        ("GET", "/ftjob-x", {}, 404, "fine_tune_not_found", "fine_tuning_job_id"),
        ("POST", "/ftjob-x/cancel", {}, 404, "fine_tune_not_found", "fine_tuning_job_id"),
        ("GET", "/%00/events", {}, 404, "fine_tune_not_found", "fine_tuning_job_id"),
        ("GET", "", {"headers": {"authorization": "Bearer wrong"}}, 401, "invalid_api_key", None),
    ],
)
async def test_errors_have_openais_shape(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    options: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
) -> None:
    headers = {"content-type": "application/json"} | options.pop("headers", {})
    answer = await client.request(method, JOBS + path, headers=headers, **options)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


async def test_an_ended_job_is_not_cancelled_and_clients_do_not_repeat_it(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    job_id = await platform.create()
    await client.post(f"{JOBS}/{job_id}/cancel")
    answer = await client.post(f"{JOBS}/{job_id}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "job_not_cancellable")
