"""What the end of a run makes of its job when somebody wanted it to end, and what the attempt has cost."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from tests.support.clock import MovableClock
from tests.support.factories import Platform
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import CheckpointRow, FineTuneRow, RevisionRow, UsageRow
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.training.outcomes import LOST, YIELDED, Cause, Ending, chosen_exit
from tunesmith_server.training.settlement import settle

DEFECT = Ending(Cause.TRAINER, "trainer_defect", "A defect.")
BAD_DATA = Ending(Cause.USER, "bad_row", "Row 3 is bad.", "training_file", 3)
CLEAN, NO_MEMORY = chosen_exit(0), chosen_exit(71)
REVISION: dict[str, Any] = {"id": "r1", "kind": "adapter", "base_revision": "", "files": [], "created_at": 0}


@pytest.mark.parametrize(
    ("ending", "state", "retries"),
    [
        (YIELDED, "paused", {}),
        (LOST, "paused", {}),
        (CLEAN, "paused", {}),
        (DEFECT, "paused", {"trainer": 1}),
        (NO_MEMORY, "paused", {"out_of_memory": 1}),
        (BAD_DATA, "failed", {}),
    ],
)
async def test_a_job_that_is_to_pause_rests_however_its_run_ended_unless_it_would_fail_again(
    platform: Platform, ending: Ending, state: str, retries: dict[str, int]
) -> None:
    identity = await platform.start_training()
    await pause(platform, identity)
    assert await end(platform, identity, ending) == state
    job = await platform.row(identity.job_id)
    assert (job.state, job.lease_token, job.retries) == (state, None, retries)


async def test_a_run_that_made_room_waits_at_once_and_without_penalty(platform: Platform) -> None:
    identity = await platform.start_training()
    for ending in (YIELDED, LOST, YIELDED):
        await change(platform, identity.job_id, preempt_requested=True)
        answer = await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1))
        assert answer.command == pb.COMMAND_PAUSE
        assert await end(platform, identity, ending) == "queued"
        await platform.end_run(identity)
        identity = await platform.claim(identity.job_id)
    job = await platform.row(identity.job_id)
    assert (job.retries, job.preempt_requested) == ({"preemption": 3}, False)
    assert job.not_before == platform.core.clock()
    assert "made room" in (await platform.messages(identity.job_id))[-2]


async def test_a_run_that_saved_before_it_was_lost_begins_the_count_of_losses_anew(platform: Platform) -> None:
    identity = await platform.start_training()
    await change(platform, identity.job_id, retries={"infrastructure": 5})
    async with platform.core.database.write() as session:
        job = await session.get(FineTuneRow, identity.job_id)
        assert job is not None
        session.add(RevisionRow(**REVISION, base_model_id=job.base_model_id))
        await session.flush()
        session.add(checkpoint_of(job))
    assert await end(platform, identity, LOST) == "queued"
    assert (await platform.row(identity.job_id)).retries == {"infrastructure": 1}


async def test_attempts_add_up_on_the_job_and_in_its_projects_usage(
    each_platform: Platform, clock: MovableClock
) -> None:
    identity = await each_platform.start_training()
    await each_platform.training.get_spec(identity)
    clock.advance(40)
    await end(each_platform, identity, YIELDED)
    await each_platform.end_run(identity)
    clock.advance(5)
    again = await each_platform.claim(identity.job_id)
    clock.advance(7)  # in a cluster's queue
    await each_platform.training.get_spec(again)
    clock.advance(60)
    await each_platform.training.get_spec(again)
    await end(each_platform, again, BAD_DATA)

    job = await each_platform.row(identity.job_id)
    assert (job.state, job.run_seconds, job.device_seconds) == ("failed", 100.0, 100.0)
    async with each_platform.core.database.read() as session:
        (usage,) = await session.scalars(select(UsageRow))
    assert (usage.project_id, usage.kind, usage.requests) == ("default", "training", 1)
    assert usage.device_seconds == 100.0
    assert (usage.model, usage.hour) == (job.base_model_id, clock.now // 3600 * 3600)


async def test_a_preflight_costs_nothing(platform: Platform, clock: MovableClock) -> None:
    identity = await platform.start_preflight()
    await platform.training.get_spec(identity)
    clock.advance(40)
    await end(platform, identity, BAD_DATA)
    async with platform.core.database.read() as session:
        assert (await session.scalars(select(UsageRow))).all() == []
    assert (await platform.row(identity.job_id)).run_seconds == 0


async def test_a_run_that_is_lost_beyond_its_limit_rests_instead_of_waiting(
    platform: Platform, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    await platform.training.get_spec(identity)
    await change(platform, identity.job_id, max_run_seconds=100)
    clock.advance(130)
    await end(platform, identity, LOST)
    job = await platform.row(identity.job_id)
    assert (job.state, job.run_seconds) == ("paused", 130.0)
    assert "max_run_seconds of 100" in (await platform.messages(identity.job_id))[-2]


async def test_a_job_that_is_paused_while_its_end_is_being_written_rests(each_platform: Platform) -> None:
    identity = await each_platform.start_training()
    seen = await each_platform.row(identity.job_id)
    await pause(each_platform, identity)
    async with each_platform.core.database.write() as session:
        assert await settle(session, seen, identity.attempt_id, [YIELDED], 0) == State.PAUSED


async def end(platform: Platform, identity: AttemptIdentity, ending: Ending | None) -> State | None:
    """The run ends so."""
    assert ending is not None
    async with platform.core.database.write() as session:
        job = await jobs.get(session, identity.job_id)
        assert job is not None
        return await settle(session, job, identity.attempt_id, [ending], int(platform.core.clock()))


async def pause(platform: Platform, identity: AttemptIdentity) -> None:
    """The user pauses the running job."""
    async with platform.core.database.write() as session:
        assert await jobs.transition(
            session, identity.job_id, {State.RUNNING}, State.PAUSING, lease=identity.attempt_id, now=0, events=[]
        )


async def change(platform: Platform, job_id: str, **values: Any) -> None:
    """Writes columns that somebody else decides on."""
    async with platform.core.database.write() as session:
        job = await session.get(FineTuneRow, job_id)
        for name, value in values.items():
            setattr(job, name, value)


def checkpoint_of(job: FineTuneRow) -> CheckpointRow:
    """A checkpoint that the job's present attempt has committed."""
    return CheckpointRow(
        id=f"ftckpt_{job.epoch}",
        job_id=job.id,
        step=2,
        epoch=job.epoch,
        prefix="",
        training_state=[],
        revision="r1",
        model_name="",
        metrics={},
        created_at=0,
    )
