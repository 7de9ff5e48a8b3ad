"""Jobs over REST: the official client unmodified, the exact wire, and the errors it must understand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from tests.support.artifacts import BASE_ID
from tests.support.asgi_server import serving
from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL, Platform, preflight_report, step_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import Authenticator
from tunesmith_server.db.tables import ProjectRow
from tunesmith_server.fine_tunes.endpoints import create_history_router, create_limits_router, create_router
from tunesmith_server.fine_tunes.logs import RunLogs
from tunesmith_server.fine_tunes.model_limits import ModelLimitsService
from tunesmith_server.http_app import create_http_app
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
async def app(platform: Platform) -> FastAPI:
    """An app with nothing but jobs."""
    authenticator = Authenticator(ProjectsService(platform.core), platform.core.signer)
    logs = RunLogs(platform.core, platform.executor)
    routers = [
        create_router(platform.fine_tunes),
        create_history_router(platform.history, logs),
        create_limits_router(ModelLimitsService(platform.core)),
    ]
    return create_http_app(platform.core, authenticator, routers)


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
        "training": {
            "weights": "lora",
            "lora_rank": "auto",
            "lora_alpha": "auto",
            "lora_targets": None,
            "use_rslora": False,
            "long_rows": "fail",
            "early_stopping_patience": "auto",
        },
        "scheduling": {"priority": 0, "devices": "auto", "max_run_seconds": None, "max_device_seconds": None},
        "auto_start": True,
        "queue_position": None,
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
        "preflight": None,
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
    dpo = await jobs.create(
        model=BASE_ID,
        training_file=platform.training_file,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}},
    )
    assert dpo.method is not None
    assert dpo.method.dpo is not None
    assert dpo.method.dpo.hyperparameters is not None
    assert dpo.method.dpo.hyperparameters.beta == 0.2

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


async def test_the_official_client_pauses_and_resumes(platform: Platform, official: openai.AsyncOpenAI) -> None:
    identity = await platform.start_preflight()
    await platform.training.complete_preflight(identity, preflight_report())
    jobs = official.fine_tuning.jobs
    assert str((await jobs.pause(identity.job_id)).status) == "paused"
    assert (await jobs.resume(identity.job_id)).status == "queued"
    with pytest.raises(openai.BadRequestError) as caught:
        await jobs.resume(identity.job_id)
    assert caught.value.code == "job_not_resumable"


async def test_a_create_call_that_a_client_repeats_makes_one_job(
    platform: Platform, client: httpx.AsyncClient, clock: MovableClock
) -> None:
    body = {"model": BASE_ID, "training_file": platform.training_file}
    first = (await client.post(JOBS, json=body, headers={"x-stainless-retry-count": "0"})).json()["id"]

    async def again(headers: dict[str, str], **changes: Any) -> str:
        made: str = (await client.post(JOBS, json=body | changes, headers=headers)).json()["id"]
        return made

    repeated = {"x-stainless-retry-count": "1"}
    assert await again(repeated) == first
    assert await again(repeated | {"x-stainless-retry-count": "2"}) == first
    assert await again(repeated, seed=1) != first
    assert await again(repeated | {"idempotency-key": "k"}) != first
    assert await again({"x-stainless-retry-count": "many"}) != first
    clock.advance(601)
    assert await again(repeated) != first


async def allow(platform: Platform, max_jobs: int) -> None:
    async with platform.core.database.write() as session:
        project = await session.get(ProjectRow, PRINCIPAL.project_id)
        assert project is not None
        project.quotas = {"max_jobs": max_jobs}


@pytest.mark.parametrize("gone", ["cancel", "refused"])
async def test_a_repeated_call_is_not_answered_with_a_job_that_it_did_not_make(
    platform: Platform, client: httpx.AsyncClient, gone: str
) -> None:
    """Clients repeat calls that were refused as well as those whose answer was lost."""
    body = {"model": BASE_ID, "training_file": platform.training_file}
    repeated = {"x-stainless-retry-count": "1"}
    first = (await client.post(JOBS, json=body)).json()["id"]
    if gone == "refused":
        await allow(platform, max_jobs=1)
        assert [(await client.post(JOBS, json=body, headers=each)).status_code for each in ({}, repeated)] == [429] * 2
        await allow(platform, max_jobs=2)
    else:
        await client.post(f"{JOBS}/{first}/cancel")
    again = await client.post(JOBS, json=body, headers=repeated)
    assert (again.status_code, again.json()["id"] != first) == (200, True)


async def test_a_refusal_before_the_last_call_is_not_what_is_repeated(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    body = {"model": BASE_ID, "training_file": platform.training_file}
    await allow(platform, max_jobs=0)
    assert (await client.post(JOBS, json=body)).status_code == 429
    await allow(platform, max_jobs=1)
    made = (await client.post(JOBS, json=body)).json()["id"]
    again = await client.post(JOBS, json=body, headers={"x-stainless-retry-count": "1"})
    assert (again.status_code, again.json()["id"]) == (200, made), "its answer was lost"


async def test_events_are_streamed_with_ids_to_the_end_and_again_from_any_of_them(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    job_id = await platform.create()
    await platform.fine_tunes.cancel(PRINCIPAL, job_id)
    ids = [event.id for event in reversed((await platform.history.list_events(PRINCIPAL, job_id)).data)]

    whole = await client.get(f"{JOBS}/{job_id}/events", params={"stream": "true"})
    by_header = {"accept": "text/event-stream", "last-event-id": ids[0]}
    rest = await client.get(f"{JOBS}/{job_id}/events", headers=by_header)
    nothing = await client.get(f"{JOBS}/{job_id}/events", params={"stream": "true", "after": ids[-1]})
    unknown = await client.get(f"{JOBS}/{job_id}/events", params={"stream": "true", "after": "ftevent-x"})

    assert whole.headers["content-type"].startswith("text/event-stream")
    first, last, done = whole.text.removeprefix(": keep-alive\n\n").rstrip("\n").split("\n\n")
    shown = (await platform.history.list_events(PRINCIPAL, job_id)).data
    assert first == f"id: {ids[0]}\nevent: message\ndata: {shown[1].model_dump_json()}"
    assert last == f"id: {ids[1]}\nevent: message\ndata: {shown[0].model_dump_json()}"
    assert done == "data: [DONE]"
    assert rest.text == f": keep-alive\n\n{last}\n\n{done}\n\n"
    assert nothing.text == f": keep-alive\n\n{done}\n\n"
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "invalid_cursor")


async def test_a_stream_brings_events_as_they_happen_and_breaks_off_when_the_server_stops(
    platform: Platform, app: FastAPI, client: httpx.AsyncClient
) -> None:
    job_id = await platform.create()
    headers = {"authorization": client.headers["authorization"]}
    async with (
        asyncio.timeout(30),
        serving(app) as url,
        httpx.AsyncClient(trust_env=False, base_url=url, headers=headers) as real,
        real.stream("GET", f"{JOBS}/{job_id}/events", params={"stream": "true"}) as answer,
    ):
        lines = answer.aiter_lines()
        assert await next_data(lines) == f"Created fine-tuning job: {job_id}"
        await platform.fine_tunes.pause(PRINCIPAL, job_id)
        assert await next_data(lines) == "The job will pause once its files are validated"
        platform.history.feed.close()
        assert [line async for line in lines if line and not line.startswith(":")] == []


async def test_metrics_logs_and_limits_have_routes(platform: Platform, client: httpx.AsyncClient) -> None:
    identity = await platform.start_training()
    heartbeat = pb.HeartbeatRequest(sequence=1, total_steps=6, metrics=[step_report(1)])
    await platform.training.heartbeat(identity, heartbeat)

    metrics = (await client.get(f"{JOBS}/{identity.job_id}/metrics", params={"limit": 1})).json()
    log = await client.get(f"{JOBS}/{identity.job_id}/logs", params={"attempt": 2})
    limits = (await client.get("/v1/fine_tuning/model_limits")).json()

    assert (metrics["data"][0]["step"], metrics["data"][0]["train_loss"], metrics["last_step"]) == (1, 1.5, 1)
    assert log.headers["content-type"] == "text/plain; charset=utf-8"
    assert log.text == f"log of {identity.attempt_id}\n"
    assert [(each["model"], each["active_jobs"]) for each in limits["data"]] == [(BASE_ID, 1)]


async def next_data(lines: AsyncIterator[str]) -> str:
    """The message of the next event."""
    async for line in lines:
        if line.startswith("data: "):
            message: str = json.loads(line.removeprefix("data: "))["message"]
            return message
    raise AssertionError("the stream ended")
