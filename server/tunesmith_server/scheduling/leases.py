"""Owns leadership: of several control planes on one database, one schedules.

It must not know what the leader does.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.clock import Clock
from tunesmith_server.db import leases
from tunesmith_server.db.session import Database
from tunesmith_server.failpoints import reach
from tunesmith_server.ids import new_id


class Leadership:
    """A named lease that is held while it is renewed in time."""

    def __init__(self, database: Database, clock: Clock, name: str, ttl_seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._name = name
        self._ttl_seconds = ttl_seconds
        self._token = new_id("leader-")
        self._held_until = 0.0

    def held(self) -> bool:
        """Whether this process may act now; asked before every step that others must not do as well."""
        return self._clock() < self._held_until

    async def renew(self) -> bool:
        """Takes or prolongs the lease; False when another process holds it. Errors leave it to run out."""
        now = self._clock()
        async with self._database.write() as session:
            taken = await leases.take(session, self._name, self._token, now=now, expires_at=now + self._ttl_seconds)
        reach("leadership.renewed")
        # Counted from before the write, so that it ends here no later than in the database.
        self._held_until = now + self._ttl_seconds if taken else 0.0
        return taken

    async def confirm(self, session: AsyncSession) -> bool:
        """The same asked of the database, within the transaction that must not be written by a former leader."""
        return await leases.holds(session, self._name, self._token, self._clock())

    async def release(self) -> None:
        """Gives the lease up, so that the next process need not wait for its end."""
        self._held_until = 0.0
        async with self._database.write() as session:
            await leases.release(session, self._name, self._token)
