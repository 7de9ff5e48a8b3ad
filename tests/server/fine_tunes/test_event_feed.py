"""Following a job: every event once and in order, whoever writes it, and an end that is the job's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest

from tests.support.factories import PRINCIPAL, Platform
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.core import Core
from tunesmith_server.db.session import Database
from tunesmith_server.db.tables import EventRow
from tunesmith_server.fine_tunes import event_feed, repository
from tunesmith_server.fine_tunes.event_feed import EventFeed
from tunesmith_server.fine_tunes.events import NewEvent


async def write(database: Database, job_id: str, texts: Sequence[str]) -> None:
    """One commit with these events."""
    async with database.write() as session:
        events = [NewEvent(text) for text in texts]
        assert await repository.amend(session, job_id, lease=None, now=1, events=events)


async def write_and_end(platform: Platform, job_id: str, count: int) -> None:
    """So many events in commits of one to three, then the end of the job."""
    written = 0
    while written < count:
        size = min(written % 3 + 1, count - written)
        await write(platform.core.database, job_id, [f"event {written + each}" for each in range(size)])
        written += size
        await asyncio.sleep(0)
    await platform.fine_tunes.cancel(PRINCIPAL, job_id)


async def read_with_reconnects(core: Core, job_id: str, batches_per_connection: int) -> list[str]:
    """All messages, by a reader whose connection breaks after every few batches."""
    feed = EventFeed(core)
    number, ended = 0, False
    seen: list[str] = []
    while not ended:
        ended = True
        async with aclosing(feed.follow(job_id, number)) as batches:
            left = batches_per_connection
            async for batch in batches:
                seen += [row.message for row in batch]
                number = batch[-1].number if batch else number
                left -= 1
                if not left:
                    ended = False
                    break
    return seen


@pytest.mark.parametrize("batches_per_connection", [1, 2, 1000])
async def test_readers_that_come_back_lose_and_repeat_nothing(
    each_platform: Platform, batches_per_connection: int
) -> None:
    job_id = await each_platform.create()
    writing = asyncio.create_task(write_and_end(each_platform, job_id, 40))
    async with asyncio.timeout(60):
        seen = await read_with_reconnects(each_platform.core, job_id, batches_per_connection)
        await writing
    expected = [f"Created fine-tuning job: {job_id}", *(f"event {each}" for each in range(40))]
    assert seen == [*expected, "Fine-tuning job cancelled"]


async def test_events_of_other_processes_are_found_by_looking(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "_POLL_SECONDS", 0.01)
    job_id = await platform.create()
    elsewhere = Database(platform.core.database.url)
    async with asyncio.timeout(30), aclosing(EventFeed(platform.core).follow(job_id)) as batches:
        assert len(await anext(batches)) == 1
        await write(elsewhere, job_id, ["from elsewhere"])
        assert [row.message for row in await first_full(batches)] == ["from elsewhere"]
    await elsewhere.close()


async def test_a_quiet_feed_gives_signs_of_life(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "_POLL_SECONDS", 0.001)
    job_id = await platform.create()
    async with asyncio.timeout(30), aclosing(EventFeed(platform.core).follow(job_id, 1)) as batches:
        assert list(await anext(batches)) == []


async def test_a_cancelled_job_is_followed_until_its_run_has_ended(platform: Platform) -> None:
    identity = await platform.start_training()
    await platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)
    reading = asyncio.create_task(read_with_reconnects(platform.core, identity.job_id, 1000))
    await asyncio.sleep(0)
    await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_INFRASTRUCTURE))
    async with asyncio.timeout(30):
        assert (await reading)[-1] == "The run of the cancelled job has ended"


async def test_feeds_end_when_the_server_stops(platform: Platform) -> None:
    feed = EventFeed(platform.core)
    job_id = await platform.create()
    async with asyncio.timeout(30), aclosing(feed.follow(job_id)) as batches:
        await anext(batches)
        waiting = asyncio.ensure_future(anext(batches, None))
        await asyncio.sleep(0)
        feed.close()
        assert await waiting is None
    assert feed.stopped


async def first_full(batches: AsyncIterator[Sequence[EventRow]]) -> Sequence[EventRow]:
    """The next batch with an event in it."""
    while True:
        batch = await anext(batches)
        if batch:
            return batch
