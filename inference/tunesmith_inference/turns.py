"""Owns how many different adapters an engine is asked for at once, and that all of them get their turn.

It must not know engines or requests. An engine computes a bounded number of adapters in one batch; asked for more, it
goes on with those that it has begun and leaves the others waiting for as long as these have requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

PATIENCE_SECONDS = 1.0
"""For an adapter that has waited so long, the one that has had its turn the longest takes no more requests."""


@dataclass(slots=True)
class _Queue:
    """Those who wait under one name, since when."""

    since: float
    waiters: list[asyncio.Future[None]] = field(default_factory=list)


class Turns:
    """At most `places` names inside at once, each as often as it likes. `clock` gives seconds that never go back."""

    def __init__(self, places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = places
        self._clock = clock
        self._inside: dict[str, int] = {}
        self._queues: dict[str, _Queue] = {}

    @contextlib.asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Waits until the name may be inside, and keeps it there during the block."""
        if self._may_join(name) or (len(self._inside) < self._places and not self._queues):
            self._inside[name] = self._inside.get(name, 0) + 1
        else:
            await self._wait(name)
        try:
            yield
        finally:
            self._leave(name)

    def _may_join(self, name: str) -> bool:
        if name not in self._inside:
            return False
        longest_inside = next(iter(self._inside)) == name
        return not (longest_inside and any(self._is_impatient(queue) for queue in self._queues.values()))

    def _is_impatient(self, queue: _Queue) -> bool:
        return self._clock() - queue.since >= PATIENCE_SECONDS

    async def _wait(self, name: str) -> None:
        queue = self._queues.setdefault(name, _Queue(self._clock()))
        waiter = asyncio.get_running_loop().create_future()
        queue.waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                queue.waiters.remove(waiter)
                if not queue.waiters and self._queues.get(name) is queue:
                    del self._queues[name]
            else:
                self._leave(name)
            raise

    def _leave(self, name: str) -> None:
        self._inside[name] -= 1
        if not self._inside[name]:
            del self._inside[name]
        while self._queues and len(self._inside) < self._places:
            first = next(iter(self._queues))
            waiters = [waiter for waiter in self._queues.pop(first).waiters if not waiter.done()]
            if waiters:
                self._inside[first] = self._inside.get(first, 0) + len(waiters)
            for waiter in waiters:
                waiter.set_result(None)
