from __future__ import annotations

import asyncio
import contextlib

from tests.support.clock import MovableClock
from tunesmith_inference.turns import PATIENCE_SECONDS, Turns


class _Visitors:
    """Requests that stay inside until they are let go; `inside` are the names of those that are."""

    def __init__(self, places: int) -> None:
        self.clock = MovableClock()
        self.turns = Turns(places, self.clock)
        self.inside: list[str] = []
        self.tasks: list[tuple[str, asyncio.Task[None], asyncio.Event]] = []

    async def come(self, *names: str) -> None:
        for name in names:
            done = asyncio.Event()
            self.tasks.append((name, asyncio.create_task(self._visit(name, done)), done))
            await _settle()

    async def go(self, name: str) -> None:
        """Ends the oldest visit under the name that is inside."""
        place = next(at for at, (who, _, _) in enumerate(self.tasks) if who == name)
        _, task, done = self.tasks.pop(place)
        done.set()
        await task
        await _settle()

    async def give_up(self, name: str) -> None:
        """Cancels the newest visit under the name."""
        place = max(at for at, (who, _, _) in enumerate(self.tasks) if who == name)
        _, task, _ = self.tasks.pop(place)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await _settle()

    async def _visit(self, name: str, done: asyncio.Event) -> None:
        async with self.turns.turn(name):
            self.inside.append(name)
            try:
                await done.wait()
            finally:
                self.inside.remove(name)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_so_many_names_are_inside_each_any_number_of_times() -> None:
    visitors = _Visitors(places=2)
    await visitors.come("a", "b", "c", "a", "c")
    assert visitors.inside == ["a", "b", "a"]
    await visitors.go("b")
    assert visitors.inside == ["a", "a", "c", "c"], "all who waited under the name come in together"


async def test_who_waits_first_comes_first() -> None:
    visitors = _Visitors(places=1)
    await visitors.come("a", "b", "c")
    await visitors.go("a")
    assert visitors.inside == ["b"]


async def test_a_busy_name_lets_one_in_that_has_waited_long() -> None:
    visitors = _Visitors(places=1)
    await visitors.come("a", "b", "a")
    assert visitors.inside == ["a", "a"]
    visitors.clock.advance(PATIENCE_SECONDS)
    await visitors.come("a")
    assert visitors.inside == ["a", "a"], "it takes no more requests"
    await visitors.go("a")
    await visitors.go("a")
    assert visitors.inside == ["b"]
    await visitors.go("b")
    assert visitors.inside == ["a"]


async def test_who_gives_up_holds_nobody_up() -> None:
    visitors = _Visitors(places=1)
    await visitors.come("a", "b", "c")
    await visitors.give_up("b")
    await visitors.go("a")
    assert visitors.inside == ["c"]
    await visitors.come("d")
    await visitors.give_up("c")
    assert visitors.inside == ["d"]
    await visitors.give_up("d")
    await visitors.come("a", "b")
    assert visitors.inside == ["a"]
