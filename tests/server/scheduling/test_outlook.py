"""What waiting jobs are told, from the rows that the scheduler sees."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update

from tests.server.files.test_repository import asked
from tests.support.clock import MovableClock
from tests.support.factories import Platform
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.db.tables import FineTuneRow, ProjectRow, UsageRow
from tunesmith_server.scheduling import outlook as outlook_module
from tunesmith_server.scheduling.outlook import Outlook, Place


async def test_places_and_starts_follow_the_order_of_the_queue(each_platform: Platform, clock: MovableClock) -> None:
    running = await each_platform.start_training()
    heartbeat = pb.HeartbeatRequest(sequence=1, phase="training", remaining_seconds=40)
    await each_platform.training.heartbeat(running, heartbeat)
    first, second, urgent = [await queued(each_platform, report={"seconds": 100.0}) for _ in range(3)]
    await change(each_platform, urgent, priority=1)
    clock.advance(10)

    rows = [await each_platform.row(job_id) for job_id in (first, second, urgent)]
    outlook = Outlook(each_platform.core, each_platform.executor)
    assert await outlook.places(rows) == {
        urgent: Place(1, 30.0),
        first: Place(2, 130.0),
        second: Place(3, 230.0),
    }


async def test_a_job_that_quotas_hold_back_has_a_place_and_one_behind_the_unknown_has_no_time(
    each_platform: Platform,
) -> None:
    waiting, asking = await queued(each_platform), await queued(each_platform)
    async with each_platform.core.database.write() as session:
        project = await session.get(ProjectRow, "default")
        assert project is not None
        project.quotas = {"max_running": 0}
    outlook = Outlook(each_platform.core, each_platform.executor)
    rows = [await each_platform.row(job_id) for job_id in (waiting, asking)]
    assert await outlook.places(rows) == {waiting: Place(1, 0.0), asking: Place(2, None)}


async def test_of_a_long_queue_everybody_shares_what_was_read(
    each_platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who are not counted, too, and those who ask at once."""
    monkeypatch.setattr(outlook_module, "_PER_PROJECT", 2)
    monkeypatch.setattr(outlook_module, "_SHORT_QUEUE", 1)
    seconds = iter(range(1000))
    monkeypatch.setattr(outlook_module, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    jobs = [await queued(each_platform, report={"seconds": 100.0}) for _ in range(4)]
    rows = [await each_platform.row(job_id) for job_id in jobs]
    outlook = Outlook(each_platform.core, each_platform.executor)

    with asked() as statements:
        at_once = await asyncio.gather(*(outlook.places([row]) for row in rows))
        one_by_one = [await outlook.places([row]) for row in rows]

    assert sum("row_number()" in sql.lower() for sql, _ in statements) == 2, "preflights and trainings, once"
    behind = Place(3, 200.0)
    places = [Place(1, 0.0), Place(2, 100.0), behind, behind]
    assert at_once == one_by_one == [{job_id: place} for job_id, place in zip(jobs, places, strict=True)]

    for _ in range(60):
        next(seconds)
    async with each_platform.core.database.write() as session:
        await session.execute(update(FineTuneRow).where(FineTuneRow.id == jobs[0]).values(state="cancelled"))
    assert await outlook.places(rows[1:2]) == {jobs[1]: Place(1, 0.0)}, "an answer is kept for a moment only"


async def test_of_a_short_queue_those_who_waited_for_a_reading_share_the_next(each_platform: Platform) -> None:
    row = await each_platform.row(await queued(each_platform, report={"seconds": 100.0}))
    outlook = Outlook(each_platform.core, each_platform.executor)

    with asked() as statements:
        places = await asyncio.gather(*(outlook.places([row]) for _ in range(8)))

    assert places == [{row.id: Place(1, 0.0)}] * 8
    assert sum("row_number()" in sql.lower() for sql, _ in statements) == 4, "preflights and trainings, twice"


async def test_quotas_and_shares_decide_what_starts(each_platform: Platform, clock: MovableClock) -> None:
    ours = await queued(each_platform)
    theirs = await queued(each_platform)
    await change(each_platform, theirs, project_id="other")
    hour = int(clock.now) // 3600 * 3600
    async with each_platform.core.database.write() as session:
        session.add(usage("default", hour, 1000.0))
        session.add(usage("other", hour - 3 * 86400, 2000.0))
    await each_platform.scheduler.run_once()
    states = [(await each_platform.row(job_id)).state for job_id in (ours, theirs)]
    assert states == ["queued", "running"], "what was used long ago counts less"

    async with each_platform.core.database.write() as session:
        project = await session.get(ProjectRow, "default")
        assert project is not None
        project.quotas = {"max_device_seconds": 1000}
    each_platform.executor.devices = ("slot-0", "slot-1")
    await each_platform.scheduler.run_once()
    assert (await each_platform.row(ours)).state == "queued", "its quota is used up"
    clock.advance(31 * 86400)
    await each_platform.scheduler.run_once()
    assert (await each_platform.row(ours)).state == "running"


async def queued(platform: Platform, **values: Any) -> str:
    """A job that waits for a device, put there without a pass of the scheduler."""
    job_id = await platform.create()
    await change(platform, job_id, state="queued", **values)
    return job_id


async def change(platform: Platform, job_id: str, **values: Any) -> None:
    """Writes columns that somebody else decides on."""
    async with platform.core.database.write() as session:
        job = await session.get(FineTuneRow, job_id)
        for name, value in values.items():
            setattr(job, name, value)


def usage(project_id: str, hour: int, device_seconds: float) -> UsageRow:
    """What a project has used of devices in an hour."""
    return UsageRow(
        project_id=project_id,
        key_id="",
        model="m",
        kind="training",
        hour=hour,
        requests=0,
        input_tokens=0,
        output_tokens=0,
        device_seconds=device_seconds,
    )
