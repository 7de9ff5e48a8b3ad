"""Owns what users can read of a job's history: events and their stream, checkpoints, metrics.

It must not know transports or who writes the history.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import EventRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.fine_tunes import repository, views
from tunesmith_server.fine_tunes.event_feed import EventFeed
from tunesmith_server.fine_tunes.history_schemas import (
    CheckpointPage,
    EventObject,
    EventPage,
    MetricsObject,
    MetricsPage,
)
from tunesmith_server.fine_tunes.lookup import require_job
from tunesmith_server.paging import check_limit, is_id, unknown_cursor
from tunesmith_server.training import repository as training

MAX_METRICS_PAGE = 1000


class HistoryService:
    """The history of the jobs of one project at a time. `feed` is what streams follow."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.feed = EventFeed(core)

    async def list_events(
        self, principal: Principal, job_id: str, *, after: str | None = None, limit: int = 20
    ) -> EventPage:
        """The job's history, newest first; raises NotFoundError, or InvalidRequestError for a bad cursor."""
        check_limit(limit)
        async with self._core.database.read() as session:
            await require_job(session, principal, job_id)
            cursor = None
            if after is not None:
                cursor = await repository.get_event(session, job_id, after) if is_id(after) else None
                if cursor is None:
                    raise unknown_cursor(after)
            rows = await repository.list_events(session, job_id, after=cursor, limit=limit + 1)
        return EventPage(data=[views.event(row) for row in rows[:limit]], has_more=len(rows) > limit)

    async def follow_events(
        self, principal: Principal, job_id: str, *, after: str | None = None
    ) -> AsyncGenerator[Sequence[EventObject], None]:
        """The job's history after an event (by id), oldest first, until the job has ended; see EventFeed.follow.

        Raises NotFoundError, or InvalidRequestError for a bad cursor, before the first batch.
        """
        number = 0
        async with self._core.database.read() as session:
            await require_job(session, principal, job_id)
            if after:
                cursor = await repository.get_event(session, job_id, after) if is_id(after) else None
                if cursor is None:
                    raise unknown_cursor(after)
                number = cursor.number
        return _shown(self.feed.follow(job_id, number))

    async def list_checkpoints(
        self, principal: Principal, job_id: str, *, after: str | None = None, limit: int = 10
    ) -> CheckpointPage:
        """The job's checkpoints, newest first; raises NotFoundError, or InvalidRequestError for a bad cursor."""
        check_limit(limit)
        async with self._core.database.read() as session:
            await require_job(session, principal, job_id)
            cursor = None
            if after is not None:
                cursor = await training.get_checkpoint(session, job_id, after) if is_id(after) else None
                if cursor is None:
                    raise unknown_cursor(after)
            rows = await training.list_checkpoints(session, job_id, after=cursor, limit=limit + 1)
        data = [views.checkpoint(row) for row in rows[:limit]]
        return CheckpointPage(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(rows) > limit,
        )

    async def list_metrics(self, principal: Principal, job_id: str, *, after: int = 0, limit: int = 100) -> MetricsPage:
        """Measures of the steps after step `after`, first step first; raises NotFoundError or InvalidRequestError."""
        check_limit(limit, MAX_METRICS_PAGE)
        if not 0 <= after < 2**31:
            raise InvalidRequestError("invalid_value", "`after` must be a step, 0 or more.", param="after")
        async with self._core.database.read() as session:
            await require_job(session, principal, job_id)
            rows = await repository.list_metrics(session, job_id, after=after, limit=limit + 1)
        data = [MetricsObject(**row.data) for row in rows[:limit]]
        return MetricsPage(data=data, last_step=data[-1].step if data else None, has_more=len(rows) > limit)


async def _shown(batches: AsyncGenerator[Sequence[EventRow], None]) -> AsyncGenerator[Sequence[EventObject], None]:
    async with aclosing(batches):
        async for batch in batches:
            yield [views.event(row) for row in batch]
