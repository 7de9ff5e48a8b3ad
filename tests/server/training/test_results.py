"""From uploaded bytes to checkpoints and the final model, on folder and S3."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from sqlalchemy import select

from tests.support.artifacts import adapter_files, full_files, upload
from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL, Platform, preflight_report, step_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import UsageRow
from tunesmith_server.errors import FencedError, InvalidRequestError
from tunesmith_server.files import repository as files
from tunesmith_server.registry import repository as registry
from tunesmith_server.registry.manifest import ManifestFile
from tunesmith_server.registry.service import RegistryService

STATE = {"training_state.json": b"{}", "training_state.safetensors": b"state"}
RESULTS = {"evaluation.jsonl": b'{"row":1}\n', "results.csv": b"step,train_loss\n1,2.0\n"}


async def test_a_job_succeeds_with_a_checkpoint_that_was_committed(each_platform: Platform) -> None:
    platform = each_platform
    identity = await platform.start_training(suffix="toy")
    await commit(platform, identity, 2, fill=1)
    artifact = await commit(platform, identity, 4, fill=2)

    name = await complete(platform, identity, 4, artifact)

    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == ("succeeded", name, 600)
    assert name.startswith("ft:toy-base:default:toy:")
    assert len(name.rpartition(":")[2]) == 8
    assert job.evaluation is not None
    assert (job.evaluation.rows, job.evaluation.tuned.exact_match) == (4, 0.75)
    assert job.evaluation.step == 4
    async with platform.core.database.read() as session:
        model = await registry.get_model(session, "default", name)
        first = await registry.get_model(session, "default", f"{name}:ckpt-step-2")
        last = await registry.get_model(session, "default", f"{name}:ckpt-step-4")
        results = [await files.get(session, "default", file_id) for file_id in job.result_files]
    assert model is not None
    assert last is not None
    assert first is not None
    assert model.revision == last.revision != first.revision
    assert (model.checkpoint, last.checkpoint) == (False, True)
    assert [row and row.filename for row in results] == ["results.csv", "evaluation.jsonl"], "clients take the first"
    for row in results:
        assert row is not None
        assert (row.purpose, row.status) == ("fine-tune-results", "processed")
        assert b"".join([chunk async for chunk in platform.core.store.read(row.storage_key)]) == RESULTS[row.filename]


async def test_a_job_and_its_tokens_count_once_for_its_key(each_platform: Platform, clock: MovableClock) -> None:
    identity = await each_platform.start_training()
    await each_platform.training.get_spec(identity)
    clock.advance(60)

    await complete(each_platform, identity, 2, await commit(each_platform, identity, 2))

    job = await each_platform.row(identity.job_id)
    async with each_platform.core.database.read() as session:
        [used] = await session.scalars(select(UsageRow))
    assert (used.key_id, used.model, used.kind) == (job.key_id, job.base_model_id, "training")
    assert (used.requests, used.input_tokens, used.device_seconds) == (1, 600, 60.0)


async def test_checkpoints_are_listed_newest_first(platform: Platform) -> None:
    identity = await platform.start_training()
    for step in (2, 4, 6):
        await commit(platform, identity, step)

    page = await platform.history.list_checkpoints(PRINCIPAL, identity.job_id, limit=2)
    assert [each.step_number for each in page.data] == [6, 4]
    assert (page.first_id, page.last_id, page.has_more) == (page.data[0].id, page.data[1].id, True)
    rest = await platform.history.list_checkpoints(PRINCIPAL, identity.job_id, after=page.last_id)
    assert [(each.step_number, rest.has_more) for each in rest.data] == [(2, False)]
    assert rest.data[0].metrics == {"step": 2, "train_loss": 1.5, "train_mean_token_accuracy": 0.5}


async def test_a_checkpoint_whose_model_was_deleted_is_not_listed(platform: Platform) -> None:
    identity = await platform.start_training()
    for step in (2, 4):
        await commit(platform, identity, step)
    newest = (await platform.history.list_checkpoints(PRINCIPAL, identity.job_id)).data[0]

    await RegistryService(platform.core).delete_model(PRINCIPAL, newest.fine_tuned_model_checkpoint)
    page = await platform.history.list_checkpoints(PRINCIPAL, identity.job_id)
    assert [each.step_number for each in page.data] == [2]


async def test_a_commit_may_be_repeated_also_at_the_same_moment(each_platform: Platform) -> None:
    identity = await each_platform.start_training()
    request = await checkpoint_request(each_platform, identity, 2)

    calls = (each_platform.training.commit_checkpoint(identity, request) for _ in range(3))
    names = await asyncio.gather(*calls)

    assert len({*names, await each_platform.training.commit_checkpoint(identity, request)}) == 1
    assert (await each_platform.messages(identity.job_id)).count("Checkpoint created at step 2") == 1


async def test_a_completion_may_be_repeated(platform: Platform) -> None:
    identity = await platform.start_training()
    artifact = await commit(platform, identity, 2)
    name = await complete(platform, identity, 2, artifact)
    before = await platform.row(identity.job_id)
    assert await complete(platform, identity, 2, artifact) == name
    assert (await platform.row(identity.job_id)).event_count == before.event_count


async def test_the_next_attempt_resumes_from_the_newest_checkpoint_and_may_complete_it(
    platform: Platform, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    await commit(platform, identity, 2, fill=1)
    artifact = await commit(platform, identity, 4, fill=2)
    await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_INFRASTRUCTURE))
    await platform.end_run(identity)
    clock.advance(5)
    again = await platform.claim(identity.job_id)

    spec = await platform.training.get_spec(again)

    assert spec.resume.step == 4
    assert {file.path for file in spec.resume.files} == {*adapter_files(), *STATE}
    assert all(f"/runs/{identity.job_id}/e2/step-4/" in file.url for file in spec.resume.files)
    assert await complete(platform, again, 4, artifact)


async def test_a_cancelled_job_never_succeeds(platform: Platform) -> None:
    identity = await platform.start_training()
    artifact = await commit(platform, identity, 2)
    await platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)
    with pytest.raises(FencedError):
        await complete(platform, identity, 2, artifact)
    job = await platform.row(identity.job_id)
    assert (job.state, job.fine_tuned_model) == ("cancelled", None)


async def test_an_attempt_that_loses_its_job_while_its_bytes_are_verified_commits_nothing(platform: Platform) -> None:
    identity = await platform.start_training()
    request = await checkpoint_request(platform, identity, 2)
    store = platform.core.store
    copy = store.copy

    async def copy_and_lose(source: str, target: str) -> None:
        await copy(source, target)
        if (await platform.row(identity.job_id)).lease_token is not None:
            await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_INFRASTRUCTURE))

    store.copy = copy_and_lose  # type: ignore[method-assign]  # the moment in which the lease is lost
    with pytest.raises(FencedError):
        await platform.training.commit_checkpoint(identity, request)
    assert (await platform.history.list_checkpoints(PRINCIPAL, identity.job_id)).data == []


async def test_full_weights_become_a_full_revision(platform: Platform) -> None:
    identity = await platform.start_preflight(training={"weights": "full"})
    report = preflight_report()
    report.hyperparameters.ClearField("lora_rank")
    report.hyperparameters.ClearField("lora_alpha")
    await platform.training.complete_preflight(identity, report)
    await platform.end_run(identity)
    identity = await platform.claim(identity.job_id)
    assert (await platform.training.get_spec(identity)).weights == pb.WEIGHTS_FULL

    artifact = await commit(platform, identity, 2, contents=full_files(), kind=pb.ARTIFACT_KIND_FULL)
    await complete(platform, identity, 2, artifact)

    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert job.training.model_dump() == {
        "weights": "full",
        "lora_rank": None,
        "lora_alpha": None,
        "lora_targets": None,
        "use_rslora": None,
        "long_rows": "fail",
        "early_stopping_patience": "auto",
    }


async def test_bytes_that_engines_would_refuse_are_refused(platform: Platform) -> None:
    identity = await platform.start_training()
    with pytest.raises(InvalidRequestError) as caught:
        await commit(platform, identity, 2, contents=adapter_files(use_dora=True))
    assert caught.value.code == "artifact_rejected"
    assert (await platform.row(identity.job_id)).state == "running"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": pb.ARTIFACT_KIND_FULL},
        {"prefix": "../e1/step-2"},
        {"prefix": ""},
        {"training_state": [pb.UploadFile(path="training_state.json", size=99, sha256="0" * 64)]},
    ],
)
async def test_an_artifact_that_is_not_as_declared_is_refused(platform: Platform, change: dict[str, object]) -> None:
    identity = await platform.start_training()
    request = await checkpoint_request(platform, identity, 2)
    changed = pb.Artifact(**change)  # type: ignore[arg-type]  # fields by name
    if "training_state" in change:
        del request.artifact.training_state[:]
    request.artifact.MergeFrom(changed)
    if change.get("prefix") == "":
        request.artifact.prefix = ""
    with pytest.raises(InvalidRequestError):
        await platform.training.commit_checkpoint(identity, request)


async def test_only_a_committed_checkpoint_becomes_the_model(platform: Platform) -> None:
    identity = await platform.start_training()
    artifact = await commit(platform, identity, 2)
    with pytest.raises(InvalidRequestError) as caught:
        await complete(platform, identity, 4, artifact)
    assert caught.value.code == "checkpoint_not_committed"
    artifact.files[0].sha256 = "0" * 64
    with pytest.raises(InvalidRequestError) as caught:
        await complete(platform, identity, 2, artifact)
    assert caught.value.code == "artifact_not_committed"


async def test_result_files_must_be_what_they_are_said_to_be(platform: Platform) -> None:
    identity = await platform.start_training()
    artifact = await commit(platform, identity, 2)
    with pytest.raises(InvalidRequestError) as caught:
        await complete(platform, identity, 2, artifact, results={"results.csv": b"forged"})
    assert caught.value.code == "invalid_upload"


async def commit(
    platform: Platform,
    identity: AttemptIdentity,
    step: int,
    *,
    fill: int = 0,
    contents: Mapping[str, bytes] | None = None,
    kind: pb.ArtifactKind.ValueType = pb.ARTIFACT_KIND_ADAPTER,
) -> pb.Artifact:
    """Uploads and commits a checkpoint, and returns its artifact."""
    request = await checkpoint_request(platform, identity, step, fill=fill, contents=contents, kind=kind)
    await platform.training.commit_checkpoint(identity, request)
    return request.artifact


async def checkpoint_request(
    platform: Platform,
    identity: AttemptIdentity,
    step: int,
    *,
    fill: int = 0,
    contents: Mapping[str, bytes] | None = None,
    kind: pb.ArtifactKind.ValueType = pb.ARTIFACT_KIND_ADAPTER,
) -> pb.CommitCheckpointRequest:
    """Uploads a checkpoint and returns the call that commits it."""
    prefix = f"runs/{identity.job_id}/e{identity.epoch}/step-{step}"
    weights = await upload(platform.core, prefix, contents or adapter_files(fill))
    state = await upload(platform.core, prefix, STATE)
    artifact = pb.Artifact(kind=kind, prefix=f"step-{step}", files=said(weights), training_state=said(state))
    return pb.CommitCheckpointRequest(step=step, artifact=artifact, metrics=step_report(step))


async def complete(
    platform: Platform,
    identity: AttemptIdentity,
    step: int,
    artifact: pb.Artifact,
    results: Mapping[str, bytes] = RESULTS,
) -> str:
    """Uploads RESULTS, claims that they are `results`, and completes the job."""
    prefix = f"runs/{identity.job_id}/e{identity.epoch}"
    declared = await upload(platform.core, prefix, results)
    await upload(platform.core, prefix, RESULTS)
    evaluation = pb.Evaluation(
        rows=4, held_out_from_training=True, base=pb.Score(exact_match=0.25), tuned=pb.Score(exact_match=0.75)
    )
    request = pb.CompleteTrainingRequest(
        step=step, artifact=artifact, trained_tokens=600, evaluation=evaluation, result_files=said(declared)
    )
    return await platform.training.complete_training(identity, request)


def said(files: list[ManifestFile]) -> list[pb.UploadFile]:
    """The files as a run names them."""
    return [pb.UploadFile(path=file.path, size=file.size, sha256=file.sha256) for file in files]
