"""Owns what was used: how what gateways metered is written down once, and how it is read in buckets of time.

It must not know transports, prices or limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith_server.core import Core
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.paging import check_limit
from tunesmith_server.projects import repository, usage_repository
from tunesmith_server.projects.usage_repository import ANY, HOUR, Group, UsageFilter, UsageLine, UsageSum

Width = Literal["1h", "1d"]

_WIDTHS: dict[Width, int] = {"1h": HOUR, "1d": 24 * HOUR}
_DEFAULT_BUCKETS: dict[Width, int] = {"1h": 24, "1d": 7}
_MAX_BUCKETS: dict[Width, int] = {"1h": 168, "1d": 31}


@dataclass(frozen=True, slots=True)
class Bucket:
    """What was used from `start_time` to before `end_time`."""

    start_time: int
    end_time: int
    sums: list[UsageSum]


@dataclass(frozen=True, slots=True)
class UsagePage:
    """Buckets in order of time; `next_page` continues after them."""

    buckets: list[Bucket]
    next_page: str | None


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What to read. Times are Unix seconds; the end is exclusive and defaults to now."""

    start_time: int
    end_time: int | None = None
    bucket_width: Width = "1d"
    limit: int | None = None
    page: str | None = None
    group_by: Sequence[Group] = ()
    which: UsageFilter = ANY


class UsageService:
    """Usage of an installation."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def take_report(self, gateway_id: str, sequence: int, lines: Sequence[UsageLine]) -> None:
        """Adds what a gateway metered; a batch that it sends again is not counted again.

        Lines of projects that are not there any more are dropped: nobody could read them.
        """
        async with self._core.database.write() as session:
            if not await usage_repository.is_next(session, f"usage:{gateway_id}", sequence):
                return
            # In one order everywhere, or two gateways that report the same keys could wait for each other.
            for line in sorted(lines, key=lambda each: (each.project_id, each.key_id, each.model, each.hour)):
                if await repository.get_project(session, line.project_id) is not None:
                    await usage_repository.add(session, line)

    async def read(self, query: UsageQuery) -> UsagePage:
        """Buckets from the start on, empty ones too; raises InvalidRequestError for a bad range, limit or page."""
        width = _WIDTHS[query.bucket_width]
        count = self._checked_count(query)
        start = _page_start(query, width)
        end = int(self._core.clock()) if query.end_time is None else query.end_time
        until = min(start + count * width, end)
        async with self._core.database.read() as session:
            sums = await usage_repository.sums(session, query.which, start, until, width, query.group_by)
        by_start: dict[int, list[UsageSum]] = {}
        for one in sums:
            by_start.setdefault(one.start_time, []).append(one)
        buckets = [Bucket(at, at + width, by_start.get(at, [])) for at in range(start, until, width)]
        return UsagePage(buckets, str(until) if until < end else None)

    def _checked_count(self, query: UsageQuery) -> int:
        most = _MAX_BUCKETS[query.bucket_width]
        count = _DEFAULT_BUCKETS[query.bucket_width] if query.limit is None else query.limit
        check_limit(count, most)
        return count


def _page_start(query: UsageQuery, width: int) -> int:
    if query.page is None:
        start = query.start_time
    elif query.page.isdecimal() and len(query.page) < 12:
        start = int(query.page)
    else:
        message = "There is no such page. Pass `next_page` of the page before."
        raise InvalidRequestError("invalid_cursor", message, param="page")
    if not 0 <= start < 10**11:
        raise InvalidRequestError("invalid_value", "`start_time` must be Unix seconds.", param="start_time")
    return start - start % width
