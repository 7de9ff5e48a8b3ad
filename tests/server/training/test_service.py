"""What a run may read and write of its job, and that an attempt which lost its job writes nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import httpx
import pytest
from google.protobuf.struct_pb2 import Struct

from tests.support.artifacts import BASE_ID
from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL, Platform, preflight_report, step_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import FileRow, StepMetricRow
from tunesmith_server.errors import FencedError, InvalidRequestError
from tunesmith_server.files.service import FilesService
from tunesmith_server.training.service import TrainingService

SHA256 = hashlib.sha256(b"").hexdigest()

Call = Callable[[TrainingService, AttemptIdentity], Awaitable[object]]
CALLS: dict[str, Call] = {
    "GetSpec": lambda service, identity: service.get_spec(identity),
    "Heartbeat": lambda service, identity: service.heartbeat(
        identity, pb.HeartbeatRequest(sequence=99, metrics=[step_report(1)], events=[pb.RunEvent(message="late")])
    ),
    "CreateUploads": lambda service, identity: service.create_uploads(identity, pb.CreateUploadsRequest()),
    "CommitCheckpoint": lambda service, identity: service.commit_checkpoint(
        identity, pb.CommitCheckpointRequest(step=1)
    ),
    "CompletePreflight": lambda service, identity: service.complete_preflight(identity, preflight_report()),
    "CompleteTraining": lambda service, identity: service.complete_training(
        identity, pb.CompleteTrainingRequest(step=1)
    ),
    "FailRun": lambda service, identity: service.fail_run(identity, pb.FailRunRequest()),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_an_older_attempt_is_fenced_and_changes_nothing(platform: Platform, call: Call) -> None:
    old = await platform.start_training()
    await platform.training.fail_run(old, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_INFRASTRUCTURE))
    await platform.end_run(old)
    assert isinstance(platform.core.clock, MovableClock)
    platform.core.clock.advance(5)
    new = await platform.claim(old.job_id)
    before = await platform.row(old.job_id)

    forged = AttemptIdentity(job_id=new.job_id, attempt_id=new.attempt_id, epoch=old.epoch)
    for identity in (old, forged):
        with pytest.raises(FencedError):
            await call(platform.training, identity)

    after = await platform.row(old.job_id)
    assert vars_of(after) == vars_of(before)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_an_attempt_of_an_unknown_job_is_fenced(platform: Platform, call: Call) -> None:
    with pytest.raises(FencedError):
        await call(platform.training, AttemptIdentity(job_id="ftjob-unknown", attempt_id="attempt-x", epoch=1))


async def test_the_spec_of_a_preflight_leaves_auto_unset(platform: Platform) -> None:
    identity = await platform.start_preflight(
        validation_file=platform.validation_file, seed=7, hyperparameters={"n_epochs": 2}
    )
    spec = await platform.training.get_spec(identity)

    assert (spec.job_id, spec.attempt_id, spec.epoch) == (identity.job_id, identity.attempt_id, 1)
    assert (spec.kind, spec.weights, spec.method) == (pb.RUN_KIND_PREFLIGHT, pb.WEIGHTS_LORA, "supervised")
    assert spec.hyperparameters == pb.Hyperparameters(n_epochs=2)
    assert (spec.seed, spec.max_lora_rank, spec.HasField("resume")) == (7, 16, False)
    assert spec.base_model.id == BASE_ID
    assert {file.path for file in spec.base_model.files} == {"config.json", "model.safetensors"}
    assert spec.training_file.path == f"{platform.training_file}.jsonl"
    assert spec.validation_file.path == f"{platform.validation_file}.jsonl"
    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert spec.day == datetime.fromtimestamp(job.created_at, UTC).date().isoformat()
    assert job.progress is not None
    assert job.progress.phase == "starting"


async def test_the_spec_of_a_training_run_carries_every_number(platform: Platform) -> None:
    spec = await platform.training.get_spec(await platform.start_training())
    assert spec.kind == pb.RUN_KIND_TRAINING
    assert {field.name for field, _ in spec.hyperparameters.ListFields()} == {
        "n_epochs",
        "batch_size",
        "learning_rate_multiplier",
        "lora_rank",
        "lora_alpha",
        "context_length",
    }


async def test_a_job_whose_file_was_deleted_fails(platform: Platform) -> None:
    identity = await platform.start_preflight()
    async with platform.core.database.write() as session:
        row = await session.get(FileRow, platform.training_file)
        assert row is not None
        row.deleted_at = 1
    with pytest.raises(FencedError):
        await platform.training.get_spec(identity)
    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert job.error is not None
    assert (job.status, job.error.code, job.error.param) == ("failed", "file_not_found", "training_file")


@pytest.mark.parametrize("call", ["GetSpec", "FailRun"])
async def test_a_cancelled_run_that_finds_its_file_gone_ends_as_cancelled(platform: Platform, call: str) -> None:
    identity = await platform.start_training()
    await platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)
    await FilesService(platform.core).delete(PRINCIPAL, platform.training_file)
    with suppress(FencedError):
        await CALLS[call](platform.training, identity)
    row = await platform.row(identity.job_id)
    assert (row.state, row.error_code, row.lease_token) == ("cancelled", None, None)


async def test_a_heartbeat_renews_the_lease_and_shows_progress(platform: Platform, clock: MovableClock) -> None:
    identity = await platform.start_training()
    clock.advance(30)
    heartbeat = pb.HeartbeatRequest(sequence=1, phase="training", step=2, total_steps=6, remaining_seconds=40)
    answer = await platform.training.heartbeat(identity, heartbeat)

    assert (answer.command, answer.lease_ttl_seconds) == (pb.COMMAND_UNSPECIFIED, 60)
    assert (await platform.row(identity.job_id)).lease_expires_at == clock.now + 60
    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert job.progress is not None
    assert job.progress.model_dump() == {"phase": "training", "step": 2, "total_steps": 6, "remaining_seconds": 40}
    assert job.estimated_finish == int(clock.now) + 40


async def test_a_repeated_heartbeat_delivers_its_lines_once(each_platform: Platform) -> None:
    identity = await each_platform.start_training()
    event = pb.RunEvent(level="warn", message="Row 3 was cut\x00.", data=Struct())
    heartbeat = pb.HeartbeatRequest(sequence=1, total_steps=6, metrics=[step_report(1)], events=[event])

    await asyncio.gather(*(each_platform.training.heartbeat(identity, heartbeat) for _ in range(4)))

    seen = await each_platform.messages(identity.job_id)
    assert seen[-2:] == ["Step 1/6: training loss=1.50", "Row 3 was cut."]
    assert seen.count("Row 3 was cut.") == 1


async def test_a_step_that_is_trained_again_replaces_its_measures_and_is_told_once(each_platform: Platform) -> None:
    identity = await each_platform.start_training()
    for sequence, loss in ((1, 1.0), (2, float("nan"))):
        metrics = [step_report(1, loss, valid_loss=0.5)]
        heartbeat = pb.HeartbeatRequest(sequence=sequence, total_steps=6, metrics=metrics)
        await each_platform.training.heartbeat(identity, heartbeat)

    async with each_platform.core.database.read() as session:
        row = await session.get(StepMetricRow, (identity.job_id, 1))
    assert row is not None
    assert (row.data["train_loss"], row.data["valid_loss"], row.data["full_valid_loss"]) == (None, 0.5, None)
    steps = [message for message in await each_platform.messages(identity.job_id) if message.startswith("Step")]
    assert steps == ["Step 1/6: training loss=1.00, validation loss=0.50"]


async def test_uploads_lead_below_the_attempts_own_prefix(platform: Platform) -> None:
    identity = await platform.start_training()
    files = [pb.UploadFile(path="step-2/adapter_model.safetensors", size=3, sha256=SHA256)]
    answer = await platform.training.create_uploads(identity, pb.CreateUploadsRequest(files=files))
    (upload,) = answer.uploads
    assert upload.path == files[0].path
    assert f"/runs/{identity.job_id}/e2/step-2/adapter_model.safetensors" in httpx.URL(upload.url).path


@pytest.mark.parametrize(
    "file",
    [
        pb.UploadFile(path="../e1/x", size=1, sha256=SHA256),
        pb.UploadFile(path="/x", size=1, sha256=SHA256),
        pb.UploadFile(path="a//x", size=1, sha256=SHA256),
        pb.UploadFile(path="a/./x", size=1, sha256=SHA256),
        pb.UploadFile(path="a\\x", size=1, sha256=SHA256),
        pb.UploadFile(path="", size=1, sha256=SHA256),
        pb.UploadFile(path="x", size=-1, sha256=SHA256),
        pb.UploadFile(path="x", size=2**40, sha256=SHA256),
        pb.UploadFile(path="x", size=1, sha256="abc"),
    ],
)
async def test_uploads_elsewhere_or_beyond_limits_are_refused(platform: Platform, file: pb.UploadFile) -> None:
    identity = await platform.start_training()
    with pytest.raises(InvalidRequestError) as caught:
        await platform.training.create_uploads(identity, pb.CreateUploadsRequest(files=[file]))
    assert caught.value.code == "invalid_upload"


async def test_a_completed_preflight_may_be_said_again(platform: Platform) -> None:
    identity = await platform.start_preflight()
    for _ in range(2):
        await platform.training.complete_preflight(identity, preflight_report())
    job = await platform.row(identity.job_id)
    assert (job.state, job.lease_token) == ("queued", None)
    assert (await platform.messages(identity.job_id)).count("Files validated, moving job to queued state") == 1


async def test_a_preflight_must_resolve_every_number(platform: Platform) -> None:
    identity = await platform.start_preflight()
    report = preflight_report()
    report.hyperparameters.ClearField("lora_rank")
    with pytest.raises(InvalidRequestError) as caught:
        await platform.training.complete_preflight(identity, report)
    assert "lora_rank" in caught.value.message
    assert (await platform.row(identity.job_id)).state == "validating_files"


async def test_a_preflight_that_completes_a_cancelled_job_is_fenced(platform: Platform) -> None:
    identity = await platform.start_preflight()
    await platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)
    with pytest.raises(FencedError):
        await platform.training.complete_preflight(identity, preflight_report())
    assert (await platform.row(identity.job_id)).state == "cancelled"


async def test_a_failure_of_the_users_making_shows_all_its_reasons(platform: Platform) -> None:
    identity = await platform.start_preflight()
    failures = [
        pb.Failure(code="row_too_long", message="Row 4 is too long.", param="training_file", row=4),
        pb.Failure(code="row_empty", message="Row 9 is empty.", param="training_file", row=9),
    ]
    request = pb.FailRunRequest(cause=pb.FAILURE_CAUSE_USER, failures=failures)
    for _ in range(2):
        await platform.training.fail_run(identity, request)

    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert job.error is not None
    assert (job.status, job.error.code, job.error.param) == ("failed", "row_too_long", "training_file")
    assert job.finished_at is not None
    assert (await platform.messages(identity.job_id))[-2:] == ["Row 4 is too long.", "Row 9 is empty."]


async def test_a_defect_of_the_trainer_is_tried_once_more(platform: Platform, clock: MovableClock) -> None:
    identity = await platform.start_training()
    for state in ("queued", "failed"):
        await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_TRAINER))
        assert (await platform.row(identity.job_id)).state == state
        if state == "queued":
            await platform.end_run(identity)
            clock.advance(5)
            identity = await platform.claim(identity.job_id)


async def test_the_next_run_is_told_how_often_memory_did_not_last_until_one_knows_no_smaller_way(
    platform: Platform, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    failure = pb.Failure(code="out_of_memory", message="Packs of 512 tokens come next.")
    for failures in (1, 2):
        await platform.training.fail_run(
            identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_OUT_OF_MEMORY, failures=[failure])
        )
        assert (await platform.messages(identity.job_id))[-1].startswith(failure.message)
        await platform.end_run(identity)
        clock.advance(5)
        identity = await platform.claim(identity.job_id)
        assert (await platform.training.get_spec(identity)).memory_failures == failures
    failure = pb.Failure(code="out_of_memory", message="Use shorter rows.", param="training_file")
    await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_USER, failures=[failure]))
    job = await platform.row(identity.job_id)
    assert (job.state, job.error_code, job.error_param) == ("failed", "out_of_memory", "training_file")


async def test_a_preflight_without_memory_is_not_tried_again(platform: Platform) -> None:
    identity = await platform.start_preflight()
    await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_OUT_OF_MEMORY))
    assert (await platform.row(identity.job_id)).state == "failed"


def vars_of(row: object) -> dict[str, object]:
    """A row's columns."""
    return {name: value for name, value in vars(row).items() if not name.startswith("_")}
