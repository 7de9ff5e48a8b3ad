"""Old estimates leave nothing behind; younger ones and jobs stay."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from tests.server.fine_tunes.test_estimates import ready, service
from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.db.tables import AttemptRow, EventRow, FineTuneRow
from tunesmith_server.errors import NotFoundError
from tunesmith_server.fine_tunes.estimate_sweep import EstimateSweep

DAY = 24 * 3600


async def rows(platform: Platform) -> list[int]:
    """How many jobs, attempts and events there are."""
    async with platform.core.database.read() as session:
        tables = (FineTuneRow, AttemptRow, EventRow)
        return [await session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


async def test_what_is_older_than_a_day_is_removed(each_platform: Platform, clock: MovableClock) -> None:
    sweep, store = EstimateSweep(each_platform.core), each_platform.core.store
    job_id = await each_platform.create()
    await each_platform.fine_tunes.cancel(PRINCIPAL, job_id)
    before = await rows(each_platform)
    old = await ready(each_platform)
    await store.put_bytes(f"runs/{old.id}/e1/rejects.jsonl", b"{}\n")

    await sweep.run_once()
    assert (await service(each_platform).get(PRINCIPAL, old.id)).status == "ready"
    clock.advance(DAY + 1)
    await sweep.run_once()

    with pytest.raises(NotFoundError):
        await service(each_platform).get(PRINCIPAL, old.id)
    assert await rows(each_platform) == before
    assert await store.list(f"runs/{old.id}/") == []


async def test_one_that_still_validates_is_cancelled_first(platform: Platform, clock: MovableClock) -> None:
    sweep = EstimateSweep(platform.core)
    made = await service(platform).create(PRINCIPAL, platform.request(), wait_seconds=0)
    identity = await platform.claim(made.id)
    clock.advance(DAY + 1)
    await sweep.run_once()
    assert (await platform.row(made.id)).cancel_requested
    await platform.end_run(identity)
    await sweep.run_once()
    with pytest.raises(NotFoundError):
        await service(platform).get(PRINCIPAL, made.id)
