"""One leader at a time, on both databases."""

from __future__ import annotations

import asyncio

from tests.support.clock import MovableClock
from tunesmith_server.core import Core
from tunesmith_server.scheduling.leases import Leadership


async def test_one_leads_until_it_stops_renewing(each_core: Core, clock: MovableClock) -> None:
    first, second = (Leadership(each_core.database, clock, "scheduler", 10) for _ in range(2))

    assert await first.renew()
    assert not await second.renew()
    clock.advance(9)
    assert await first.renew()
    clock.advance(9)
    assert first.held()
    assert not await second.renew()
    clock.advance(1)
    assert not first.held()
    assert await second.renew()
    assert not await first.renew()
    assert [first.held(), second.held()] == [False, True]


async def test_many_candidates_make_one_leader(each_core: Core, clock: MovableClock) -> None:
    candidates = [Leadership(each_core.database, clock, "scheduler", 10) for _ in range(8)]
    taken = await asyncio.gather(*(candidate.renew() for candidate in candidates))
    assert taken.count(True) == 1


async def test_a_leader_that_leaves_makes_room_at_once(core: Core, clock: MovableClock) -> None:
    first, second = (Leadership(core.database, clock, "scheduler", 10) for _ in range(2))
    assert await first.renew()
    await second.release()
    assert first.held()
    await first.release()
    assert not first.held()
    assert await second.renew()


async def test_a_former_leader_is_told_so_within_its_transaction(each_core: Core, clock: MovableClock) -> None:
    slow = MovableClock(clock.now)
    former, next_one = (Leadership(each_core.database, each, "scheduler", 10) for each in (slow, clock))
    assert await former.renew()
    async with each_core.database.write() as session:
        assert await former.confirm(session)
    clock.advance(11)
    assert await next_one.renew()
    assert former.held(), "its clock stands still, or it slept"
    async with each_core.database.write() as session:
        assert not await former.confirm(session)
