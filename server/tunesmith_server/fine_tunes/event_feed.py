"""Owns how a job's history is followed: from an event on, oldest first, until the job has ended.

It must not know transports. The database is the truth, since other control planes write too; the news within this
process only makes its own events arrive at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.core import Core
from tunesmith_server.db.tables import EventRow
from tunesmith_server.fine_tunes import repository
from tunesmith_server.fine_tunes.state import TERMINAL
from tunesmith_server.repeat import rest

_POLL_SECONDS = 1.0
_BATCH = 200
_SIGN_OF_LIFE_ROUNDS = 15
"""Rounds without an event after which a follower is told that there is none, so that it finds a dead connection."""


class EventFeed:
    """Lets any number of readers follow jobs. `stopped` tells whether a feed ended because the server stops."""

    def __init__(self, core: Core) -> None:
        self._database = core.database
        self.stopped = False

    def close(self) -> None:
        """Ends every feed, so that a server that stops need not cut them off; readers come back to the next one."""
        self.stopped = True
        self._database.news.announce_all()

    async def follow(self, job_id: str, number: int = 0) -> AsyncGenerator[Sequence[EventRow], None]:
        """All events after the one with this number, in batches; an empty batch now and then is a sign of life.

        Ends after the last event of a job that has ended, or when the server stops.
        """
        quiet_rounds = 0
        with self._database.news.about(job_id) as woken:
            while not self.stopped:
                woken.clear()
                async with self._database.read() as session:
                    ended, batch = await _read(session, job_id, number)
                if batch:
                    number, quiet_rounds = batch[-1].number, 0
                    yield batch
                    continue
                if ended:
                    return
                quiet_rounds += 1
                if quiet_rounds % _SIGN_OF_LIFE_ROUNDS == 0:
                    yield ()
                await rest(woken, _POLL_SECONDS)


async def _read(session: AsyncSession, job_id: str, number: int) -> tuple[bool, Sequence[EventRow]]:
    # The job is read before its events: the last event is written together with the last state.
    job = await repository.get(session, job_id)
    if job is None:
        return True, ()
    if job.event_count == number:
        return job.state in TERMINAL, ()
    return False, await repository.list_events_since(session, job_id, number, _BATCH)
