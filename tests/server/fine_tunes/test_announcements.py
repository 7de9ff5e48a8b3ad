"""What the outside hears of a job: each end once, whichever way it came."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, update

from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.db.tables import FineTuneRow, OutboxRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.fine_tunes import repository
from tunesmith_server.fine_tunes.announcements import announcement
from tunesmith_server.fine_tunes.state import TRANSITIONS, State

ANNOUNCED = {"succeeded", "failed", "cancelled", "paused"}


def test_ends_and_pauses_are_announced_and_nothing_else() -> None:
    heard = {state.value for state in TRANSITIONS if announcement({"state": state.value}, cancel_requested=False)}

    assert heard == ANNOUNCED
    assert announcement({"progress": None}, cancel_requested=False) is None


@pytest.mark.parametrize("end", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
async def test_an_end_is_written_with_its_transition(each_platform: Platform, end: State) -> None:
    identity = await each_platform.start_training()

    await move(each_platform, identity.job_id, State.RUNNING, end, identity.attempt_id)

    assert await outbox(each_platform) == [(f"fine_tuning.job.{end.value}", identity.job_id)]


async def test_a_job_that_nobody_runs_is_cancelled_with_one_announcement(platform: Platform) -> None:
    job_id = await platform.create()

    await platform.fine_tunes.cancel(PRINCIPAL, job_id)

    assert await outbox(platform) == [("fine_tuning.job.cancelled", job_id)]


async def test_a_cancelled_run_is_announced_when_its_user_is_told_and_not_again_at_its_end(
    each_platform: Platform,
) -> None:
    identity = await each_platform.start_training()
    told = [("fine_tuning.job.cancelled", identity.job_id)]

    answers = await asyncio.gather(
        *(each_platform.fine_tunes.cancel(PRINCIPAL, identity.job_id) for _ in range(3)), return_exceptions=True
    )
    assert sum(isinstance(answer, InvalidRequestError) for answer in answers) == 2
    assert await outbox(each_platform) == told

    await move(each_platform, identity.job_id, State.RUNNING, State.CANCELLED, identity.attempt_id)
    assert await outbox(each_platform) == told


async def test_what_fails_in_a_transaction_is_not_announced(platform: Platform) -> None:
    identity = await platform.start_training()

    with pytest.raises(RuntimeError):
        await move(platform, identity.job_id, State.RUNNING, State.FAILED, identity.attempt_id, fail=True)

    assert await outbox(platform) == []


async def test_estimates_are_nobodys_news(platform: Platform) -> None:
    job_id = await platform.create()
    async with platform.core.database.write() as session:
        await session.execute(update(FineTuneRow).values(kind="estimate"))

    await move(platform, job_id, State.VALIDATING_FILES, State.FAILED, None)

    assert await outbox(platform) == []


async def move(
    platform: Platform, job_id: str, expected: State, to: State, lease: str | None, *, fail: bool = False
) -> None:
    async with platform.core.database.write() as session:
        moved = await repository.transition(session, job_id, {expected}, to, lease=lease, now=7, events=[])
        assert moved
        if fail:
            raise RuntimeError


async def outbox(platform: Platform) -> list[tuple[str, str]]:
    async with platform.core.database.read() as session:
        rows = await session.scalars(select(OutboxRow).order_by(OutboxRow.position))
        return [(row.type, row.subject_id) for row in rows]
