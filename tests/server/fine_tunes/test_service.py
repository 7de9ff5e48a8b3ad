"""What users can do with jobs, and what they are told when they cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.artifacts import BASE_ID
from tests.support.factories import PRINCIPAL, Platform, preflight_report, step_report, store_file
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import Principal
from tunesmith_server.errors import ConflictError, InvalidRequestError, NotFoundError
from tunesmith_server.fine_tunes.service import FineTunesService

OTHER = Principal(project_id="other", key_id="key-2")


async def test_a_new_job_echoes_what_was_asked_and_leaves_the_rest_to_auto(platform: Platform) -> None:
    request = platform.request(
        model="gpt-4o-mini-2024-07-18",
        validation_file=platform.validation_file,
        suffix="My-support.bot_1",
        seed=7,
        metadata={"team": "blue"},
        hyperparameters={"n_epochs": 2, "batch_size": "auto"},
        training={"lora_rank": 4},
    )
    job = await platform.fine_tunes.create(PRINCIPAL, request)

    assert job.model == BASE_ID
    assert job.status == "validating_files"
    assert job.hyperparameters.model_dump() == {
        "n_epochs": 2,
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
    }
    assert job.method.supervised.hyperparameters == job.hyperparameters
    assert job.training.model_dump() == {"weights": "lora", "lora_rank": 4, "lora_alpha": "auto"}
    assert (job.seed, job.user_provided_suffix, job.metadata) == (7, "My-support.bot_1", {"team": "blue"})
    assert (job.error, job.finished_at, job.fine_tuned_model, job.result_files) == (None, None, None, [])
    assert await platform.fine_tunes.get(PRINCIPAL, job.id) == job
    assert await platform.messages(job.id) == [f"Created fine-tuning job: {job.id}"]


async def test_both_places_of_hyperparameters_mean_the_same(platform: Platform) -> None:
    numbers = {"n_epochs": 2, "learning_rate_multiplier": 0.5}
    old = await platform.fine_tunes.create(PRINCIPAL, platform.request(hyperparameters=numbers))
    method = {"type": "supervised", "supervised": {"hyperparameters": numbers}}
    new = await platform.fine_tunes.create(PRINCIPAL, platform.request(method=method))
    assert old.hyperparameters == new.hyperparameters
    assert 0 <= old.seed < 2**31


async def test_auto_is_replaced_once_the_data_was_read(platform: Platform) -> None:
    identity = await platform.start_preflight(hyperparameters={"batch_size": 5})
    await platform.training.complete_preflight(identity, preflight_report())

    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)

    assert job.status == "queued"
    assert job.hyperparameters.model_dump() == {"n_epochs": 3, "batch_size": 5, "learning_rate_multiplier": 1.0}
    assert job.training.model_dump() == {"weights": "lora", "lora_rank": 8, "lora_alpha": 16.0}


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"model": "gpt-5"}, "model_not_found", "model"),
        ({"model": "a\x00b"}, "model_not_found", "model"),
        ({"training_file": "file-unknown"}, "file_not_found", "training_file"),
        ({"training_file": "../\x00"}, "file_not_found", "training_file"),
        ({"validation_file": "file-unknown"}, "file_not_found", "validation_file"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {}}}}, "unsupported_method", "method.type"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "unsupported_integration", "integrations"),
        ({"training": {"lora_rank": 65}}, "lora_rank_too_high", "training.lora_rank"),
        ({"training": {"weights": "full", "lora_rank": 8}}, "invalid_value", "training.lora_rank"),
    ],
)
async def test_a_request_that_policy_forbids_is_refused_and_leaves_nothing(
    platform: Platform, changes: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await platform.fine_tunes.create(PRINCIPAL, platform.request(**changes), "key-1")
    assert (caught.value.code, caught.value.param) == (code, param)
    assert (await platform.fine_tunes.list(PRINCIPAL)).data == []
    await platform.fine_tunes.create(PRINCIPAL, platform.request(), "key-1")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"rows": 9}, "invalid_n_examples"),
        ({"purpose": "batch"}, "invalid_purpose"),
        ({"status": "error"}, "file_not_processed"),
        ({"deleted_at": 1}, "file_not_found"),
        ({"project_id": "other"}, "file_not_found"),
    ],
)
async def test_a_file_that_cannot_be_trained_on_is_refused(
    platform: Platform, changes: dict[str, Any], code: str
) -> None:
    file_id = await store_file(platform.core, **changes)
    with pytest.raises(InvalidRequestError) as caught:
        await platform.create(training_file=file_id)
    assert (caught.value.code, caught.value.param) == (code, "training_file")


async def test_the_same_key_and_body_give_the_same_job_however_often_at_once(each_platform: Platform) -> None:
    request = each_platform.request()
    jobs = await asyncio.gather(*(each_platform.fine_tunes.create(PRINCIPAL, request, "key-1") for _ in range(8)))

    assert len({job.id for job in jobs}) == 1
    assert len((await each_platform.fine_tunes.list(PRINCIPAL)).data) == 1
    with pytest.raises(ConflictError) as caught:
        await each_platform.fine_tunes.create(PRINCIPAL, each_platform.request(seed=1), "key-1")
    assert caught.value.code == "idempotency_conflict"
    assert (await each_platform.fine_tunes.create(PRINCIPAL, request, "key-2")).id != jobs[0].id


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 256])
async def test_a_key_that_cannot_be_stored_is_refused(platform: Platform, key: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await platform.fine_tunes.create(PRINCIPAL, platform.request(), key)
    assert caught.value.code == "invalid_idempotency_key"


async def test_lists_are_newest_first_and_continue_after_a_job(each_platform: Platform) -> None:
    ids = [await each_platform.create() for _ in range(5)]

    first = await each_platform.fine_tunes.list(PRINCIPAL, limit=2)
    rest = await each_platform.fine_tunes.list(PRINCIPAL, limit=10, after=first.data[-1].id)

    assert [job.id for job in first.data + rest.data] == ids[::-1]
    assert (first.has_more, rest.has_more) == (True, False)
    assert (await each_platform.fine_tunes.list(OTHER)).data == []
    for after in ("ftjob-unknown", "\x00"):
        with pytest.raises(InvalidRequestError) as caught:
            await each_platform.fine_tunes.list(PRINCIPAL, after=after)
        assert (caught.value.code, caught.value.param) == ("invalid_cursor", "after")


@pytest.mark.parametrize("limit", [0, -1, 101])
async def test_a_page_has_a_size_within_limits(platform: Platform, limit: int) -> None:
    with pytest.raises(InvalidRequestError):
        await platform.fine_tunes.list(PRINCIPAL, limit=limit)


async def test_lists_filter_by_metadata(each_platform: Platform) -> None:
    plain = await each_platform.create()
    blue = await each_platform.create(metadata={"team": "blue", "a.b[0]": "x", 'a"\\b': "'", "ключ": "значение"})
    red = await each_platform.create(metadata={"team": "red"})

    async def found(metadata: dict[str, str]) -> list[str]:
        return [job.id for job in (await each_platform.fine_tunes.list(PRINCIPAL, metadata=metadata)).data]

    assert await found({"team": "blue"}) == [blue]
    assert await found({"team": "blue", "a.b[0]": "x", 'a"\\b': "'", "ключ": "значение"}) == [blue]
    assert await found({"team": "blue", "a.b[0]": "y"}) == []
    assert await found({"team": "red"}) == [red]
    assert await found({}) == [plain]


async def test_a_waiting_job_is_cancelled_at_once(platform: Platform) -> None:
    job_id = await platform.create()
    job = await platform.fine_tunes.cancel(PRINCIPAL, job_id)
    assert (job.status, job.finished_at) == ("cancelled", int(platform.core.clock()))
    assert (await platform.row(job_id)).state == "cancelled"
    await platform.scheduler.run_once()
    assert platform.executor.launches == {}


@pytest.mark.parametrize("start", ["start_preflight", "start_training"])
async def test_a_running_job_shows_cancelled_while_its_run_is_told_to_stop(platform: Platform, start: str) -> None:
    identity = await getattr(platform, start)()
    job = await platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)

    assert job.status == "cancelled"
    assert (await platform.row(identity.job_id)).lease_token == identity.attempt_id
    answer = await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1))
    assert answer.command == pb.COMMAND_STOP
    stopped = pb.FailRunRequest(cause=pb.FAILURE_CAUSE_INFRASTRUCTURE)
    await platform.training.fail_run(identity, stopped)
    row = await platform.row(identity.job_id)
    assert (row.state, row.lease_token) == ("cancelled", None)
    assert (await platform.fine_tunes.get(PRINCIPAL, identity.job_id)).finished_at == job.finished_at


async def test_an_ended_job_cannot_be_cancelled(platform: Platform) -> None:
    job_id = await platform.create()
    await platform.fine_tunes.cancel(PRINCIPAL, job_id)
    with pytest.raises(InvalidRequestError) as caught:
        await platform.fine_tunes.cancel(PRINCIPAL, job_id)
    assert caught.value.code == "job_not_cancellable"


async def test_jobs_of_another_project_do_not_exist(platform: Platform) -> None:
    job_id = await platform.create()
    service = platform.fine_tunes
    for call in (service.get, service.cancel, service.list_events, service.list_checkpoints):
        for name in (job_id, "ftjob-unknown", "\x00"):
            with pytest.raises(NotFoundError):
                await call(OTHER, name)


async def test_events_are_newest_first_and_continue_after_an_event(platform: Platform) -> None:
    identity = await platform.start_training()
    metrics = [step_report(step) for step in (1, 2, 3)]
    heartbeat = pb.HeartbeatRequest(sequence=1, phase="training", step=3, total_steps=6, metrics=metrics)
    await platform.training.heartbeat(identity, heartbeat)
    seen = [event async for event in all_events(platform.fine_tunes, identity.job_id)]

    assert [event.message for event in reversed(seen)] == [
        f"Created fine-tuning job: {identity.job_id}",
        f"Validating training file: {platform.training_file}",
        "Automatic settings: n_epochs = 3 (10 rows)",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        *(f"Step {step}/6: training loss=1.50" for step in (1, 2, 3)),
    ]
    assert [event.type for event in seen[:4]] == ["metrics"] * 3 + ["message"]
    assert seen[0].data == {
        "step": 3,
        "total_steps": 6,
        "train_loss": 1.5,
        "train_mean_token_accuracy": 0.5,
        "valid_loss": None,
        "valid_mean_token_accuracy": None,
        "full_valid_loss": None,
        "full_valid_mean_token_accuracy": None,
    }
    with pytest.raises(InvalidRequestError):
        await platform.fine_tunes.list_events(PRINCIPAL, identity.job_id, after="ftevent-unknown")


async def test_creating_and_cancelling_wake_the_scheduler(platform: Platform) -> None:
    woken: list[str] = []
    service = FineTunesService(platform.core, wake=lambda: woken.append("woken"))
    job = await service.create(PRINCIPAL, platform.request())
    await service.cancel(PRINCIPAL, job.id)
    assert woken == ["woken", "woken"]


async def all_events(service: FineTunesService, job_id: str) -> AsyncIterator[Any]:
    """Every event, newest first, read in pages of two."""
    after = None
    while True:
        page = await service.list_events(PRINCIPAL, job_id, after=after, limit=2)
        for event in page.data:
            yield event
        if not page.has_more:
            return
        after = page.data[-1].id
