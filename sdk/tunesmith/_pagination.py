"""Owns how lists are read page by page: the last item's id is the cursor of the next page.
Must not know what is listed.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from tunesmith._blocking import BlockingResource, iterate_blocking, run_blocking
from tunesmith._http import Call, HttpClient
from tunesmith.types import Identified, ListAnswer

ItemT = TypeVar("ItemT", bound=Identified)
ResourceT = TypeVar("ResourceT")
P = ParamSpec("P")


class AsyncPage(Generic[ItemT]):
    """One page of a list; iterating goes on through all later pages.

    Attributes:
        data: the items of this page.
        has_more: whether another page follows.
    """

    def __init__(self, request: PageRequest[ItemT], answer: ListAnswer[ItemT]) -> None:
        self.data = answer.data
        self.has_more = answer.has_more and bool(answer.data)
        self._request = request

    async def next_page(self) -> AsyncPage[ItemT] | None:
        """Return the following page, None at the end."""
        return await self._request.after(self.data[-1].id) if self.has_more else None

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        page: AsyncPage[ItemT] | None = self
        while page is not None:
            for item in page.data:
                yield item
            page = await page.next_page()


class PageRequest(Generic[ItemT]):
    """A list that was asked for: `await` it for its first page, or iterate it with `async for`."""

    def __init__(
        self, http: HttpClient, shape: type[ListAnswer[ItemT]], path: str, query: Mapping[str, str | int | None]
    ) -> None:
        self._http = http
        self._shape = shape
        self._path = path
        self._query = query

    def after(self, cursor: str) -> PageRequest[ItemT]:
        """Return the request for what follows the item with this id."""
        return PageRequest(self._http, self._shape, self._path, {**self._query, "after": cursor})

    def __await__(self) -> Generator[Any, Any, AsyncPage[ItemT]]:
        return self._fetch().__await__()

    async def __aiter__(self) -> AsyncIterator[ItemT]:
        async for item in await self:
            yield item

    async def _fetch(self) -> AsyncPage[ItemT]:
        answer = await self._http.fetch(self._shape, Call("GET", self._path, query=self._query))
        return AsyncPage(self, answer)


class Page(Generic[ItemT]):
    """One page of a list; iterating goes on through all later pages.

    Attributes:
        data: the items of this page.
        has_more: whether another page follows.
    """

    def __init__(self, twin: AsyncPage[ItemT]) -> None:
        self.data = twin.data
        self.has_more = twin.has_more
        self._twin = twin

    def next_page(self) -> Page[ItemT] | None:
        """Return the following page, None at the end."""
        following = run_blocking(self._twin.next_page())
        return None if following is None else Page(following)

    def __iter__(self) -> Iterator[ItemT]:
        return iterate_blocking(aiter(self._twin))


def paging(
    method: Callable[Concatenate[ResourceT, P], PageRequest[ItemT]],
) -> Callable[Concatenate[BlockingResource[ResourceT], P], Page[ItemT]]:
    """Return the synchronous twin of a listing method, with its signature and docstring."""

    @functools.wraps(method)
    def call(self: BlockingResource[ResourceT], /, *args: P.args, **kwargs: P.kwargs) -> Page[ItemT]:
        request = method(self.twin, *args, **kwargs)
        return Page(run_blocking(_first(request)))

    return call


async def _first(request: PageRequest[ItemT]) -> AsyncPage[ItemT]:
    return await request
