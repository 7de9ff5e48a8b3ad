"""Coroutines that are run without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tunesmith._blocking import BlockingResource, blocking, iterate_blocking, iterating, run_blocking


class AsyncCounter:
    """A resource that counts."""

    async def add(self, left: int, *, right: int = 1) -> int:
        """Add two numbers."""
        return left + right

    async def up_to(self, limit: int) -> AsyncIterator[int]:
        """Count."""
        for number in range(limit):
            yield number


class Counter(BlockingResource[AsyncCounter]):
    """Its synchronous face."""

    add = blocking(AsyncCounter.add)
    up_to = iterating(AsyncCounter.up_to)


class TestTwins:
    def test_results_and_items(self) -> None:
        counter = Counter(AsyncCounter())
        assert counter.add(1, right=2) == 3
        assert list(counter.up_to(3)) == [0, 1, 2]

    def test_they_keep_their_docstrings(self) -> None:
        assert Counter.add.__doc__ == "Add two numbers."


class TestRunBlocking:
    def test_exceptions_come_through(self) -> None:
        async def fail() -> None:
            raise LookupError("gone")

        with pytest.raises(LookupError, match="gone"):
            run_blocking(fail())

    def test_suspending_is_a_defect(self) -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            run_blocking(asyncio.sleep(1))


class TestIterateBlocking:
    def test_it_is_lazy(self) -> None:
        reached = []

        async def items() -> AsyncIterator[int]:
            for number in range(3):
                reached.append(number)
                yield number

        assert next(iterate_blocking(items())) == 0
        assert reached == [0]
