"""The rules of writing a job, on both databases."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import tunesmith_server
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.fine_tunes import repository
from tunesmith_server.fine_tunes.events import NewEvent
from tunesmith_server.fine_tunes.state import TERMINAL, TRANSITIONS, State

LINE = NewEvent("something happened")


async def test_a_transition_needs_the_expected_state_and_the_lease(each_platform: Platform) -> None:
    identity = await each_platform.start_preflight()

    assert not await move(each_platform, identity.job_id, State.QUEUED, State.FAILED, identity.attempt_id)
    assert not await move(each_platform, identity.job_id, State.VALIDATING_FILES, State.QUEUED, "attempt-other")
    assert not await move(each_platform, identity.job_id, State.VALIDATING_FILES, State.QUEUED, None)
    before = await each_platform.row(identity.job_id)
    assert await move(each_platform, identity.job_id, State.VALIDATING_FILES, State.QUEUED, identity.attempt_id)

    after = await each_platform.row(identity.job_id)
    assert (before.state, after.state) == ("validating_files", "queued")
    assert after.event_count == before.event_count + 1
    assert (await each_platform.messages(identity.job_id))[-1] == LINE.message


@pytest.mark.parametrize("end", sorted(TERMINAL))
async def test_an_ended_job_never_changes(platform: Platform, end: State) -> None:
    identity = await platform.start_training()
    assert await move(platform, identity.job_id, State.RUNNING, end, identity.attempt_id)
    before = await platform.row(identity.job_id)

    for state in State:
        with pytest.raises(ValueError, match="may not follow"):
            await move(platform, identity.job_id, end, state, identity.attempt_id)
        for expected in State:
            if state in TRANSITIONS[expected]:
                assert not await move(platform, identity.job_id, expected, state, identity.attempt_id)
    async with platform.core.database.write() as session:
        assert not await repository.amend(session, identity.job_id, lease=identity.attempt_id, now=1, events=[LINE])

    after = await platform.row(identity.job_id)
    assert (after.state, after.event_count) == (before.state, before.event_count)


async def test_a_job_whose_cancellation_was_asked_for_becomes_nothing_else(each_platform: Platform) -> None:
    identity = await each_platform.start_training()
    await each_platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)

    for state in (State.SUCCEEDED, State.FAILED, State.QUEUED):
        assert not await move(each_platform, identity.job_id, State.RUNNING, state, identity.attempt_id)
    assert await move(each_platform, identity.job_id, State.RUNNING, State.CANCELLED, identity.attempt_id)


async def test_events_are_numbered_without_gaps_by_concurrent_writers(each_platform: Platform) -> None:
    job_id = await each_platform.create()

    async def write(writer: int) -> None:
        for line in range(5):
            async with each_platform.core.database.write() as session:
                event = NewEvent(f"{writer}-{line}")
                assert await repository.amend(session, job_id, lease=None, now=1, events=[event, event])

    await asyncio.gather(*(write(writer) for writer in range(4)))

    async with each_platform.core.database.read() as session:
        rows = await repository.list_events(session, job_id, after=None, limit=100)
    assert [row.number for row in reversed(rows)] == list(range(1, 42))


async def test_a_job_is_claimed_by_one_of_many(each_platform: Platform) -> None:
    job_id = await each_platform.create()

    async def claim(attempt: int) -> int | None:
        async with each_platform.core.database.write() as session:
            return await repository.claim(
                session,
                job_id,
                State.VALIDATING_FILES,
                State.VALIDATING_FILES,
                attempt_id=f"attempt-{attempt}",
                lease_expires_at=1.0,
                now=1,
                events=[],
            )

    epochs = await asyncio.gather(*(claim(attempt) for attempt in range(8)))

    assert [epoch for epoch in epochs if epoch is not None] == [1]


async def test_what_fails_in_a_transaction_leaves_neither_state_nor_event(each_platform: Platform) -> None:
    job_id = await each_platform.create()

    with pytest.raises(RuntimeError):
        await fail_within_transition(each_platform, job_id)

    assert (await each_platform.row(job_id)).state == "validating_files"
    assert LINE.message not in await each_platform.messages(job_id)


def test_nothing_else_writes_a_state() -> None:
    root = Path(tunesmith_server.__file__).parent
    writes = re.compile(r"\.state\s*=[^=]|update\(FineTuneRow\)|\"state\":")
    allowed = {"fine_tunes/repository.py"}
    # These write the states of base models, replicas, attempts and deliveries.
    elsewhere = {
        "registry/replicas.py",
        "registry/repository.py",
        "scheduling/repository.py",
        "webhooks/delivery.py",
        "webhooks/repository.py",
    }
    strays = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if writes.search(line) and str(path.relative_to(root)) not in allowed
        if str(path.relative_to(root)) not in elsewhere or "FineTuneRow" in line
    ]
    assert not strays, f"{strays}: only fine_tunes/repository.py may move a job, or leases and events come apart"


async def move(platform: Platform, job_id: str, expected: State, to: State, lease: str | None) -> bool:
    """One transition in a transaction of its own."""
    async with platform.core.database.write() as session:
        return await repository.transition(session, job_id, {expected}, to, lease=lease, now=1, events=[LINE])


async def fail_within_transition(platform: Platform, job_id: str) -> None:
    """Moves the job, and raises before the commit."""
    async with platform.core.database.write() as session:
        await repository.transition(
            session, job_id, {State.VALIDATING_FILES}, State.FAILED, lease=None, now=1, events=[LINE]
        )
        raise RuntimeError
