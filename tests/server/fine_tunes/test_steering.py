"""Pause and resume in every state that a job can be in."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.factories import PRINCIPAL, Platform, preflight_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.training import ownership
from tunesmith_server.training import service as training_service


async def queued(platform: Platform) -> str:
    """A job whose files are validated."""
    identity = await platform.start_preflight()
    await platform.training.complete_preflight(identity, preflight_report())
    await platform.end_run(identity)
    return identity.job_id


async def test_a_queued_job_pauses_at_once_and_queues_again(each_platform: Platform) -> None:
    job_id = await queued(each_platform)
    service = each_platform.fine_tunes

    assert (await service.pause(PRINCIPAL, job_id)).status == "paused"
    assert (await service.pause(PRINCIPAL, job_id)).status == "paused"
    await each_platform.scheduler.run_once()
    assert each_platform.executor.launches == {}
    assert (await service.resume(PRINCIPAL, job_id)).status == "queued"

    await each_platform.claim(job_id)
    assert (await each_platform.messages(job_id))[-3:-1] == [
        "Fine-tuning job paused",
        "Fine-tuning job resumed, moving job to queued state",
    ]


async def test_a_running_job_pauses_once_its_run_has_saved_and_ended(platform: Platform) -> None:
    identity = await platform.start_training()
    service, job_id = platform.fine_tunes, identity.job_id

    assert (await service.pause(PRINCIPAL, job_id)).status == "pausing"
    assert (await service.pause(PRINCIPAL, job_id)).status == "pausing"
    answer = await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1))
    assert answer.command == pb.COMMAND_PAUSE
    with pytest.raises(InvalidRequestError, match="Wait until it is paused") as caught:
        await service.resume(PRINCIPAL, job_id)
    assert caught.value.code == "job_not_resumable"


async def test_a_job_that_is_validated_can_be_told_to_wait_and_to_start_after_all(platform: Platform) -> None:
    identity = await platform.start_preflight()
    service, job_id = platform.fine_tunes, identity.job_id

    job = await service.pause(PRINCIPAL, job_id)
    assert (job.status, job.auto_start) == ("validating_files", False)
    job = await service.resume(PRINCIPAL, job_id)
    assert (job.status, job.auto_start) == ("validating_files", True)
    with pytest.raises(InvalidRequestError):
        await service.resume(PRINCIPAL, job_id)
    await service.pause(PRINCIPAL, job_id)
    await platform.training.complete_preflight(identity, preflight_report())

    assert (await service.get(PRINCIPAL, job_id)).status == "paused"
    job = await service.resume(PRINCIPAL, job_id)
    assert (job.status, job.auto_start) == ("queued", True)


async def test_a_job_that_shall_not_start_by_itself_waits_after_validation(platform: Platform) -> None:
    identity = await platform.start_preflight(auto_start=False)
    await platform.training.complete_preflight(identity, preflight_report())
    assert (await platform.fine_tunes.get(PRINCIPAL, identity.job_id)).status == "paused"


async def test_ended_jobs_are_neither_paused_nor_resumed(platform: Platform) -> None:
    job_id = await platform.create()
    await platform.fine_tunes.cancel(PRINCIPAL, job_id)
    with pytest.raises(InvalidRequestError) as caught:
        await platform.fine_tunes.pause(PRINCIPAL, job_id)
    assert caught.value.code == "job_not_pausable"
    with pytest.raises(InvalidRequestError) as caught:
        await platform.fine_tunes.resume(PRINCIPAL, job_id)
    assert caught.value.code == "job_not_resumable"


async def test_a_job_whose_cancelled_run_still_ends_counts_as_ended(platform: Platform) -> None:
    identity = await platform.start_training()
    await platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)
    for steer in (platform.fine_tunes.pause, platform.fine_tunes.resume, platform.fine_tunes.cancel):
        with pytest.raises(InvalidRequestError):
            await steer(PRINCIPAL, identity.job_id)


async def test_queued_and_running_jobs_are_not_resumed(platform: Platform) -> None:
    job_id = await queued(platform)
    with pytest.raises(InvalidRequestError):
        await platform.fine_tunes.resume(PRINCIPAL, job_id)
    await platform.claim(job_id)
    with pytest.raises(InvalidRequestError):
        await platform.fine_tunes.resume(PRINCIPAL, job_id)
    assert (await platform.row(job_id)).state == State.RUNNING


async def test_a_paused_job_can_be_cancelled(platform: Platform) -> None:
    job_id = await queued(platform)
    await platform.fine_tunes.pause(PRINCIPAL, job_id)
    assert (await platform.fine_tunes.cancel(PRINCIPAL, job_id)).status == "cancelled"


async def test_a_pause_in_the_moment_in_which_validation_ends_is_not_lost(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = await platform.start_preflight()
    as_it_was = await platform.row(identity.job_id)
    await platform.fine_tunes.pause(PRINCIPAL, identity.job_id)
    known = iter([as_it_was])

    async def read_before_the_pause(session: AsyncSession, asked: AttemptIdentity) -> FineTuneRow:
        return next(known, None) or await ownership.owned(session, asked)

    monkeypatch.setattr(training_service, "owned", read_before_the_pause)
    await platform.training.complete_preflight(identity, preflight_report())
    assert (await platform.row(identity.job_id)).state == State.PAUSED
