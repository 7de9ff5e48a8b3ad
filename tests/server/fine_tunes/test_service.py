"""What users can do with jobs, and what they are told when they cannot."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.artifacts import BASE_ID
from tests.support.core import open_core
from tests.support.factories import PRINCIPAL, Platform, make_platform, preflight_report, store_file
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import Principal
from tunesmith_server.db.tables import ProjectRow
from tunesmith_server.errors import ConflictError, InvalidRequestError, NotFoundError, QuotaExceededError
from tunesmith_server.fine_tunes.schemas import DpoObject, SupervisedObject
from tunesmith_server.fine_tunes.service import FineTunesService

REINFORCEMENT = {"type": "reinforcement", "reinforcement": {"grader": {"type": "multi"}}}
WANDB = {"type": "wandb", "wandb": {"project": "tickets", "name": "first", "tags": ["mine"]}}
MLFLOW = {"type": "mlflow", "mlflow": {"experiment": "tickets"}}
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
    assert isinstance(job.method, SupervisedObject)
    assert job.method.supervised.hyperparameters == job.hyperparameters
    assert job.training.model_dump() == {
        "weights": "lora",
        "lora_rank": 4,
        "lora_alpha": "auto",
        "lora_targets": None,
        "use_rslora": False,
        "long_rows": "fail",
        "early_stopping_patience": "auto",
    }
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
    assert job.training.model_dump() == {
        "weights": "lora",
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "lora_targets": None,
        "use_rslora": False,
        "long_rows": "fail",
        "early_stopping_patience": "auto",
    }


async def test_dpo_is_offered_and_its_beta_is_resolved(platform: Platform) -> None:
    method = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2}}}
    identity = await platform.start_preflight(method=method)
    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert job.method.model_dump() == {
        "type": "dpo",
        "dpo": {
            "hyperparameters": {
                "n_epochs": 2,
                "batch_size": "auto",
                "learning_rate_multiplier": "auto",
                "beta": "auto",
            }
        },
    }
    report = preflight_report()
    report.hyperparameters.beta = 0.1
    await platform.training.complete_preflight(identity, report)

    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert isinstance(job.method, DpoObject)
    assert job.method.dpo.hyperparameters.beta == 0.1
    assert (await platform.row(identity.job_id)).method == "dpo"


async def test_continued_pretraining_takes_a_single_text(platform: Platform) -> None:
    file_id = await store_file(platform.core, rows=1, filename="book.txt")
    method = {"type": "continued_pretraining", "continued_pretraining": {"hyperparameters": {"n_epochs": 2}}}
    job = await platform.fine_tunes.create(PRINCIPAL, platform.request(training_file=file_id, method=method))

    assert job.method.type == "continued_pretraining"
    assert job.hyperparameters.n_epochs == 2
    for param in ("training_file", "validation_file"):
        shouted = await store_file(platform.core, filename="ROWS.TXT")
        with pytest.raises(InvalidRequestError) as caught:
            await platform.create(**{param: shouted})
        assert (caught.value.code, caught.value.param) == ("wrong_row_type", param)
        assert "rename it to .jsonl" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"model": "gpt-5"}, "model_not_found", "model"),
        ({"model": "a\x00b"}, "model_not_found", "model"),
        ({"training_file": "file-unknown"}, "file_not_found", "training_file"),
        ({"training_file": "../\x00"}, "file_not_found", "training_file"),
        ({"validation_file": "file-unknown"}, "file_not_found", "validation_file"),
        ({"method": REINFORCEMENT}, "unsupported_method", "method.type"),
        ({"training": {"lora_rank": 65}}, "lora_rank_too_high", "training.lora_rank"),
        ({"training": {"weights": "full", "lora_rank": 8}}, "invalid_value", "training.lora_rank"),
        ({"training": {"weights": "full", "use_rslora": True}}, "invalid_value", "training.use_rslora"),
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
    ("integration", "variable", "value"),
    [(WANDB, "WANDB_API_KEY", "secret"), (WANDB, "WANDB_MODE", "offline"), (MLFLOW, "MLFLOW_TRACKING_URI", "http://m")],
)
async def test_an_integration_is_accepted_where_the_operator_has_set_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, integration: dict[str, Any], variable: str, value: str
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    async with open_core(tmp_path / "bare") as core:
        platform = await make_platform(core)
        with pytest.raises(InvalidRequestError, match="ask the operator to set") as caught:
            await platform.create(integrations=[integration])
        assert (caught.value.code, caught.value.param) == ("integration_not_configured", "integrations.0.type")
    monkeypatch.setenv(variable, value)
    async with open_core(tmp_path / "set-up") as core:
        platform = await make_platform(core)
        job = await platform.fine_tunes.create(PRINCIPAL, platform.request(integrations=[integration]))
        [shown] = job.integrations or []
        assert shown.model_dump(exclude_none=True) == integration
        with pytest.raises(InvalidRequestError) as caught:
            await platform.create(integrations=[integration, integration])
        assert (caught.value.code, caught.value.param) == ("duplicate_integration", "integrations.1.type")
        assert len((await platform.fine_tunes.list(PRINCIPAL)).data) == 1


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
    service, history = platform.fine_tunes, platform.history
    reads = (history.list_events, history.follow_events, history.list_checkpoints, history.list_metrics)
    for call in (service.get, service.cancel, service.pause, service.resume, *reads):
        for name in (job_id, "ftjob-unknown", "\x00"):
            with pytest.raises(NotFoundError):
                await call(OTHER, name)


async def test_creating_and_cancelling_wake_the_scheduler(platform: Platform) -> None:
    woken: list[str] = []
    service = FineTunesService(platform.core, wake=lambda: woken.append("woken"))
    job = await service.create(PRINCIPAL, platform.request())
    await service.cancel(PRINCIPAL, job.id)
    assert woken == ["woken", "woken"]


async def test_our_own_wishes_are_echoed_and_stored(platform: Platform) -> None:
    wishes = {"priority": -5, "devices": "auto", "max_run_seconds": 60, "max_device_seconds": 120}
    job = await platform.fine_tunes.create(PRINCIPAL, platform.request(scheduling=wishes, auto_start=False))
    assert job.scheduling.model_dump() == wishes
    assert job.auto_start is False
    row = await platform.row(job.id)
    assert (row.kind, row.key_id, row.priority, len(row.body_hash)) == ("job", PRINCIPAL.key_id, -5, 64)


async def test_a_job_tells_its_place_in_the_queue_while_it_waits(platform: Platform) -> None:
    ids = [await validated(platform, priority) for priority in (0, 0, 5)]
    for job_id in ids:
        await platform.fine_tunes.resume(PRINCIPAL, job_id)
    places = [(await platform.fine_tunes.get(PRINCIPAL, job_id)).queue_position for job_id in ids]
    assert places == [2, 3, 1]
    assert [job.queue_position for job in (await platform.fine_tunes.list(PRINCIPAL)).data] == [None] * 3
    await platform.fine_tunes.pause(PRINCIPAL, ids[2])
    assert (await platform.fine_tunes.get(PRINCIPAL, ids[2])).queue_position is None
    assert (await platform.fine_tunes.get(PRINCIPAL, ids[0])).queue_position == 1


async def test_what_the_preflight_found_is_shown(platform: Platform) -> None:
    identity = await platform.start_preflight()
    report = preflight_report()
    report.report.findings.add(code="cut_rows", message="One row is cut.", rows=[3], count=1)
    report.report.seconds = 12.5
    await platform.training.complete_preflight(identity, report)
    shown = (await platform.fine_tunes.get(PRINCIPAL, identity.job_id)).preflight
    assert shown is not None
    assert (shown.seconds, shown.memory, shown.rejects_file) == (12.5, None, None)
    assert [(finding["code"], finding["rows"]) for finding in shown.findings] == [("cut_rows", [3])]


async def test_a_project_may_have_so_many_jobs(platform: Platform) -> None:
    async with platform.core.database.write() as session:
        project = await session.get(ProjectRow, PRINCIPAL.project_id)
        assert project is not None
        project.quotas = {"max_jobs": 1}
    job_id = await platform.create()
    with pytest.raises(QuotaExceededError):
        await platform.create()
    await platform.fine_tunes.cancel(PRINCIPAL, job_id)
    await platform.create()


async def validated(platform: Platform, priority: int) -> str:
    """A job that is paused after its preflight."""
    identity = await platform.start_preflight(scheduling={"priority": priority}, auto_start=False)
    await platform.training.complete_preflight(identity, preflight_report())
    await platform.end_run(identity)
    return identity.job_id
