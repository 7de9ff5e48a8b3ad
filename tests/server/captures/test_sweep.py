"""The sweep removes captures when their time is over and what a crash left, and nothing else."""

from __future__ import annotations

import time

from sqlalchemy import select

from tests.support.captures import capture
from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.captures.content import storage_key
from tunesmith_server.captures.repository import CaptureFilter
from tunesmith_server.captures.service import CapturesService
from tunesmith_server.captures.sweep import CapturesSweep
from tunesmith_server.core import Core
from tunesmith_server.db.tables import CaptureRow
from tunesmith_server.storage.orphans import GRACE_SECONDS

DAY = 86_400


async def rows(core: Core) -> list[str]:
    """Ids of all rows, deleted ones too."""
    async with core.database.read() as session:
        return list(await session.scalars(select(CaptureRow.id).order_by(CaptureRow.id)))


async def test_captures_live_for_their_time(
    service: CapturesService, each_platform: Platform, clock: MovableClock
) -> None:
    core, sweep = each_platform.core, CapturesSweep(each_platform.core)
    now = int(clock.now)
    await service.take([capture(number, created=now) for number in range(3)])
    await service.take([capture(9, created=now + DAY)])
    clock.advance(core.settings.capture_retention_days * DAY)
    await sweep.run_once()
    assert len((await service.list(PRINCIPAL, CaptureFilter())).captures) == 4
    await service.take([capture(10, created=int(clock.now))])
    clock.advance(1)
    await sweep.run_once()
    assert [each.row.id for each in (await service.list(PRINCIPAL, CaptureFilter())).captures] == ["chatcmpl-10"]
    assert await core.store.list("captures/") == [storage_key("default", "chatcmpl-10")]
    assert len(await rows(core)) == 5, "a report that comes late must not bring them back"
    clock.advance(DAY + 1)
    await sweep.run_once()
    assert await rows(core) == ["chatcmpl-10"]


async def test_what_a_crash_left_goes_after_a_day(
    service: CapturesService, each_platform: Platform, clock: MovableClock
) -> None:
    core, sweep = each_platform.core, CapturesSweep(each_platform.core)
    clock.now = time.time()  # a store tells the age of its objects by the machine's clock
    await service.take([capture(1, created=int(clock.now))])
    await core.store.put_bytes(storage_key("default", "chatcmpl-lost"), b"{}")
    await sweep.run_once()
    assert len(await core.store.list("captures/")) == 2, "its row may still be on the way"
    clock.advance(GRACE_SECONDS + 10)
    await sweep.run_once()
    assert await core.store.list("captures/") == [storage_key("default", "chatcmpl-1")]
