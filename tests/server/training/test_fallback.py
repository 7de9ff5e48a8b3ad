"""A job whose checkpoint lies damaged goes on from an older one; the next of that step takes its place."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from tests.server.training.test_results import checkpoint_request, commit, complete
from tests.support.artifacts import adapter_files
from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import CheckpointRow, RevisionRow
from tunesmith_server.errors import FencedError, InvalidRequestError
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.permission_schemas import CreatePermissions
from tunesmith_server.fine_tunes.permissions import PermissionsService
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.registry import repository as registry
from tunesmith_server.training import repository

WEIGHTS = "adapter_model.safetensors"
DAMAGED = pb.FailRunRequest(
    cause=pb.FAILURE_CAUSE_INFRASTRUCTURE,
    failures=[pb.Failure(code="checkpoint_damaged", message="It is not what was stored.")],
)
LOST = pb.FailRunRequest(cause=pb.FAILURE_CAUSE_INFRASTRUCTURE)


async def saved(platform: Platform, steps: Collection[int]) -> AttemptIdentity:
    """The second attempt of a job whose first has left checkpoints of these steps, each in bytes of its own."""
    identity = await platform.start_training()
    for step in steps:
        await commit(platform, identity, step, fill=step)
    return await ended(platform, identity, LOST)


async def ended(platform: Platform, identity: AttemptIdentity, request: pb.FailRunRequest) -> AttemptIdentity:
    """Ends the attempt so and returns the next one."""
    await platform.training.fail_run(identity, request)
    await platform.end_run(identity)
    assert isinstance(platform.core.clock, MovableClock)
    platform.core.clock.advance(5)
    return await platform.claim(identity.job_id)


async def resumes_from(platform: Platform, identity: AttemptIdentity) -> int:
    """The step of the checkpoint that the attempt is given; 0 without one."""
    return (await platform.training.get_spec(identity)).resume.step


async def listed(platform: Platform, identity: AttemptIdentity) -> dict[int, str]:
    """Ids of the checkpoints that users see, by step."""
    page = await platform.history.list_checkpoints(PRINCIPAL, identity.job_id)
    return {each.step_number: each.id for each in page.data}


async def stored(platform: Platform, identity: AttemptIdentity, step: int) -> CheckpointRow:
    async with platform.core.database.read() as session:
        row = await repository.find_checkpoint(session, identity.job_id, step)
    assert row is not None
    return row


async def served(platform: Platform, row: CheckpointRow) -> tuple[str, bytes]:
    """The revision that the checkpoint's name stands for, and its weights."""
    async with platform.core.database.read() as session:
        model = await registry.get_model(session, "default", row.model_name)
    assert model is not None
    chunks = platform.core.store.read(f"revisions/{model.revision}/{WEIGHTS}")
    return model.revision, b"".join([chunk async for chunk in chunks])


async def test_the_next_attempt_goes_on_from_the_newest_older_checkpoint(each_platform: Platform) -> None:
    platform = each_platform
    identity = await saved(platform, [2, 4])
    before = await listed(platform, identity)
    assert await resumes_from(platform, identity) == 4

    again = await ended(platform, identity, DAMAGED)

    assert await resumes_from(platform, again) == 2
    assert await listed(platform, again) == before
    told = await platform.history.list_events(PRINCIPAL, again.job_id, limit=100)
    [line] = [event for event in told.data if event.message.startswith("The checkpoint of step")]
    assert (line.level, line.data) == ("warn", {"step": 4, "resumes_from_step": 2})
    assert line.message == "The checkpoint of step 4 is damaged: the job goes on from the checkpoint of step 2."


async def test_a_job_gets_through_however_many_are_damaged(platform: Platform) -> None:
    identity = await saved(platform, [2, 4, 6])
    seen = []
    for _ in range(3):
        seen.append(await resumes_from(platform, identity))
        identity = await ended(platform, identity, DAMAGED)

    assert [*seen, await resumes_from(platform, identity)] == [6, 4, 2, 0]
    assert "The checkpoint of step 2 is damaged: the job goes on from the start." in await platform.messages(
        identity.job_id
    )
    assert (await platform.row(identity.job_id)).retries == {"infrastructure": 1, "damaged_checkpoint": 3}


@pytest.mark.parametrize("fill", [4, 9], ids=["the same bytes", "other bytes"])
async def test_the_next_checkpoint_of_the_step_takes_the_damaged_ones_place(each_platform: Platform, fill: int) -> None:
    platform = each_platform
    identity = await ended(platform, await saved(platform, [2, 4]), DAMAGED)
    before = await stored(platform, identity, 4)
    await platform.core.store.put_bytes(f"revisions/{before.revision}/{WEIGHTS}", b"damaged")
    await PermissionsService(platform.core, lambda: None).create(
        before.model_name, CreatePermissions(project_ids=["other"])
    )

    artifact = await commit(platform, identity, 4, fill=fill)

    row = await stored(platform, identity, 4)
    assert (row.id, row.model_name, row.damaged_at) == (before.id, before.model_name, None)
    assert (row.epoch, row.prefix) == (identity.epoch, f"runs/{identity.job_id}/e{identity.epoch}/step-4")
    assert await served(platform, row) == (row.revision, adapter_files(fill)[WEIGHTS])
    async with platform.core.database.read() as session:
        assert await registry.get_model(session, "other", row.model_name) is not None
        old = await session.get(RevisionRow, before.revision)
    assert old is not None
    assert (row.revision == before.revision, old.removed_at is None) == (fill == 4, fill == 4)
    identity = await ended(platform, identity, LOST)
    resume = (await platform.training.get_spec(identity)).resume
    assert resume.step == 4
    assert all(f"/{row.prefix}/" in file.url for file in resume.files)
    assert await complete(platform, identity, 4, artifact)


async def test_a_damaged_checkpoint_does_not_become_the_model(platform: Platform) -> None:
    identity = await ended(platform, await saved(platform, [2]), DAMAGED)
    with pytest.raises(InvalidRequestError) as caught:
        await complete(platform, identity, 2, (await checkpoint_request(platform, identity, 2)).artifact)
    assert caught.value.code == "checkpoint_not_committed"


async def test_a_damaged_checkpoint_that_a_job_starts_from_is_still_there_for_it(platform: Platform) -> None:
    identity = await ended(platform, await saved(platform, [4]), DAMAGED)
    before = await stored(platform, identity, 4)
    await platform.create(model=before.model_name)
    await commit(platform, identity, 4, fill=9)
    async with platform.core.database.read() as session:
        old = await session.get(RevisionRow, before.revision)
    assert old is not None
    assert old.removed_at is None


async def test_a_commit_in_the_damaged_ones_place_may_be_repeated(each_platform: Platform) -> None:
    identity = await ended(each_platform, await saved(each_platform, [2]), DAMAGED)
    request = await checkpoint_request(each_platform, identity, 2)

    calls = (each_platform.training.commit_checkpoint(identity, request) for _ in range(3))
    names = await asyncio.gather(*calls)

    assert {*names, await each_platform.training.commit_checkpoint(identity, request)} == {names[0]}
    assert (await each_platform.messages(identity.job_id)).count("Checkpoint created at step 2") == 2


async def test_a_report_that_is_repeated_steps_back_once(each_platform: Platform) -> None:
    identity = await saved(each_platform, [2, 4])
    calls = (each_platform.training.fail_run(identity, DAMAGED) for _ in range(3))
    said = await asyncio.gather(*calls, return_exceptions=True)
    assert all(each is None or isinstance(each, FencedError) for each in said)
    assert [(await stored(each_platform, identity, step)).damaged_at is None for step in (2, 4)] == [True, False]


async def test_a_run_that_was_given_no_checkpoint_is_an_ordinary_loss(platform: Platform) -> None:
    identity = await platform.start_training()
    await commit(platform, identity, 2)  # its own, which it did not have to read
    await platform.training.fail_run(identity, DAMAGED)
    assert (await platform.row(identity.job_id)).retries == {"infrastructure": 1}
    assert (await stored(platform, identity, 2)).damaged_at is None


async def test_a_job_that_is_to_pause_rests_and_goes_on_from_the_older_one(platform: Platform) -> None:
    identity = await saved(platform, [2, 4])
    async with platform.core.database.write() as session:
        assert await jobs.transition(
            session, identity.job_id, {State.RUNNING}, State.PAUSING, lease=identity.attempt_id, now=0, events=[]
        )
    await platform.training.fail_run(identity, DAMAGED)
    job = await platform.row(identity.job_id)
    assert (job.state, job.retries) == ("paused", {"infrastructure": 1})
    assert (await stored(platform, identity, 4)).damaged_at is not None
