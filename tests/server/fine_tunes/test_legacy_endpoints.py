"""The first fine-tuning API over the same jobs: its shapes, its ids, its stream, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.artifacts import BASE_ID
from tests.support.factories import PRINCIPAL, Platform, preflight_report
from tunesmith_server.auth import Authenticator
from tunesmith_server.fine_tunes.legacy import LegacyService
from tunesmith_server.fine_tunes.legacy_endpoints import create_router
from tunesmith_server.http_app import create_http_app
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService

TUNES = "/v1/fine-tunes"


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app with nothing but the old API, with a key of the default project."""
    projects = ProjectsService(platform.core)
    service = LegacyService(platform.core, platform.fine_tunes, platform.history)
    app = create_http_app(platform.core, Authenticator(projects, platform.core.signer), [create_router(service)])
    headers = {"authorization": f"Bearer {(await projects.create_key(DEFAULT_PROJECT, 'test')).key}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as made:
        yield made


async def create(platform: Platform, client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    """Makes a job by the old API."""
    answer = await client.post(TUNES, json={"model": BASE_ID, "training_file": platform.training_file} | changes)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def test_a_new_job_has_every_key_and_plain_numbers(platform: Platform, client: httpx.AsyncClient) -> None:
    now = int(platform.core.clock())
    tune = await create(
        platform,
        client,
        validation_file=platform.validation_file,
        suffix="custom model name",
        n_epochs=2,
        prompt_loss_weight=0.01,
        classification_betas=None,
    )
    job_id = f"ftjob-{tune['id'].removeprefix('ft-')}"
    training_files = tune.pop("training_files")
    validation_files = tune.pop("validation_files")
    assert tune == {
        "id": tune["id"],
        "object": "fine-tune",
        "created_at": now,
        "updated_at": now,
        "model": BASE_ID,
        "fine_tuned_model": None,
        "organization_id": "default",
        "status": "created",
        "hyperparams": {
            "n_epochs": 2,
            "batch_size": 1,
            "learning_rate_multiplier": 1.0,
            "prompt_loss_weight": 0.0,
        },
        "result_files": [],
        "events": [
            {
                "object": "fine-tune-event",
                "created_at": now,
                "level": "info",
                "message": f"Created fine-tuning job: {job_id}",
            }
        ],
    }
    assert [(each["id"], each["object"], each["purpose"]) for each in training_files] == [
        (platform.training_file, "file", "fine-tune")
    ]
    assert [each["id"] for each in validation_files] == [platform.validation_file]
    assert (await platform.fine_tunes.get(PRINCIPAL, job_id)).user_provided_suffix == "custom-model-name"


async def test_both_forms_of_an_id_name_the_job(platform: Platform, client: httpx.AsyncClient) -> None:
    job_id = await platform.create()
    old_id = f"ft-{job_id.removeprefix('ftjob-')}"
    for name in (job_id, old_id):
        assert (await client.get(f"{TUNES}/{name}")).json()["id"] == old_id
    listed = (await client.get(TUNES)).json()
    assert [each["id"] for each in listed["data"]] == [old_id]
    assert "events" not in listed["data"][0]
    cancelled = (await client.post(f"{TUNES}/{old_id}/cancel")).json()
    assert (cancelled["id"], cancelled["status"]) == (old_id, "cancelled")


@pytest.mark.parametrize(
    ("body", "n_epochs"),
    [
        ({"hyperparameters": {"n_epochs": 4}}, 4),
        ({"n_epochs": None}, 3),
        ({"hyperparameters": {"n_epochs": "auto"}}, 3),
    ],
)
async def test_both_places_of_the_epochs_are_read(
    platform: Platform, client: httpx.AsyncClient, body: dict[str, Any], n_epochs: int
) -> None:
    assert (await create(platform, client, **body))["hyperparams"]["n_epochs"] == n_epochs


async def test_numbers_are_the_real_ones_once_the_files_are_validated(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    identity = await platform.start_preflight()
    await platform.training.complete_preflight(identity, preflight_report(n_epochs=9))
    shown = (await client.get(f"{TUNES}/{identity.job_id}")).json()
    assert (shown["hyperparams"]["n_epochs"], shown["hyperparams"]["batch_size"]) == (9, 5)


async def test_the_stream_is_data_lines_to_the_end_of_the_job(platform: Platform, client: httpx.AsyncClient) -> None:
    job_id = await platform.create()
    await platform.fine_tunes.cancel(PRINCIPAL, job_id)
    listed = (await client.get(f"{TUNES}/{job_id}/events")).json()
    answer = await client.get(f"{TUNES}/{job_id}/events", params={"stream": "true"})

    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert [json.loads(line.removeprefix("data: ")) for line in lines[:-1]] == listed["data"]
    assert [event["message"] for event in listed["data"]] == await platform.messages(job_id)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"model": "davinci"}, "model_not_found", "model"),
        ({"model": None}, "model_not_found", "model"),
        ({"model": "gpt-5"}, "model_not_found", "model"),
        ({"training_file": "file-x"}, "file_not_found", "training_file"),
        ({"prompt_loss_weight": 0.5}, "invalid_value", "prompt_loss_weight"),
        ({"compute_classification_metrics": True}, "invalid_value", "compute_classification_metrics"),
        ({"n_epochs": 0}, "invalid_value", "n_epochs"),
        ({"surprise": 1}, "unknown_parameter", "surprise"),
    ],
)
async def test_refusals_name_their_field(
    platform: Platform, client: httpx.AsyncClient, changes: dict[str, Any], code: str, param: str
) -> None:
    body = {"model": BASE_ID, "training_file": platform.training_file} | changes
    answer = await client.post(TUNES, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


async def test_unknown_jobs_are_not_found(client: httpx.AsyncClient) -> None:
    for path in ("/ft-x", "/ft-x/events", "/ft-x/events?stream=true"):
        assert (await client.get(TUNES + path)).status_code == 404
