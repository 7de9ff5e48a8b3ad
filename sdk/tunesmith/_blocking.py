"""Owns how the synchronous client runs the one implementation, which is written as coroutines.
Must not know any resource, nor HTTP.

Over a blocking transport a coroutine never suspends: every `await` in it returns at once, after the blocking call
underneath has come back. Such a coroutine is run by a single `send(None)`, without an event loop, so the synchronous
client also works inside a running loop (a notebook, say).
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

ResourceT = TypeVar("ResourceT")
ResultT = TypeVar("ResultT")
P = ParamSpec("P")


class BlockingResource(Generic[ResourceT]):
    """The synchronous face of a resource; `twin` holds the implementation over a blocking transport."""

    def __init__(self, twin: ResourceT) -> None:
        self.twin = twin


def blocking(
    method: Callable[Concatenate[ResourceT, P], Coroutine[Any, Any, ResultT]],
) -> Callable[Concatenate[BlockingResource[ResourceT], P], ResultT]:
    """Return the synchronous twin of a coroutine method, with its signature and docstring."""

    @functools.wraps(method)
    def call(self: BlockingResource[ResourceT], /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return run_blocking(method(self.twin, *args, **kwargs))

    return call


def iterating(
    method: Callable[Concatenate[ResourceT, P], AsyncIterator[ResultT]],
) -> Callable[Concatenate[BlockingResource[ResourceT], P], Iterator[ResultT]]:
    """Return the synchronous twin of an async generator method, with its signature and docstring."""

    @functools.wraps(method)
    def call(self: BlockingResource[ResourceT], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[ResultT]:
        return iterate_blocking(method(self.twin, *args, **kwargs))

    return call


def run_blocking(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine that never suspends and return its result.

    Raises:
        RuntimeError: it did suspend, so it was not built over a blocking transport.
    """
    try:
        coroutine.send(None)
    except StopIteration as finished:
        result: ResultT = finished.value
        return result
    coroutine.close()
    raise RuntimeError("A coroutine of the synchronous client must not wait for an event loop.")


def iterate_blocking(items: AsyncIterator[ResultT]) -> Iterator[ResultT]:
    """Yield what an async iterator that never suspends yields."""
    try:
        while True:
            try:
                item = run_blocking(_next_of(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        # Who stops early, too, gives back what the iterator holds: a connection.
        if isinstance(items, AsyncGenerator):
            run_blocking(_close(items))


async def _next_of(items: AsyncIterator[ResultT]) -> ResultT:
    return await anext(items)


async def _close(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()
