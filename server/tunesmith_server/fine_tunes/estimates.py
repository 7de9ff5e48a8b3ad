"""Owns dry runs: a create call is validated like a job, by the same preflight, and answered with what it would take.

It must not know transports. An estimate is a row of its own kind that no list or route of jobs shows; it ends after
its preflight and never waits for a device.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.fine_tunes import estimate_views, events, policy, references, repository
from tunesmith_server.fine_tunes.estimate_schemas import EstimateObject
from tunesmith_server.fine_tunes.schemas import CreateFineTune
from tunesmith_server.fine_tunes.service import new_row
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.ids import new_id
from tunesmith_server.paging import is_id
from tunesmith_server.repeat import rest
from tunesmith_server.scheduling.outlook import Outlook

DEFAULT_WAIT_SECONDS = 25.0
MAX_WAIT_SECONDS = 60.0

_POLL_SECONDS = 1.0


class EstimatesService:
    """Estimates of one project at a time. `wake` tells the scheduler that there is something new."""

    def __init__(self, core: Core, outlook: Outlook, wake: Callable[[], None]) -> None:
        self._core = core
        self._outlook = outlook
        self._wake = wake

    async def create(
        self, principal: Principal, request: CreateFineTune, wait_seconds: float = DEFAULT_WAIT_SECONDS
    ) -> EstimateObject:
        """Starts an estimate and waits for it so long; one that takes longer is answered as it is, and goes on.

        Raises InvalidRequestError for all that a job's create call is refused for.
        """
        if not 0 <= wait_seconds <= MAX_WAIT_SECONDS:
            message = f"`wait_seconds` must be from 0 to {MAX_WAIT_SECONDS:g}."
            raise InvalidRequestError("invalid_value", message, param="wait_seconds")
        policy.check_options(request, self._core.settings)
        now = int(self._core.clock())
        async with self._core.database.write() as session:
            found = await references.find(session, principal.project_id, request, now)
            origin = policy.check_references(found, request, self._core.settings)
            row = new_row(new_id("ftest-"), principal, request, origin, now)
            row.kind, row.auto_start = repository.ESTIMATE, False
            await repository.insert(session, row, *events.first_lines(row.id, origin.waits_for))
        self._wake()
        return await self._shown(await self._validated(row.id, wait_seconds))

    async def get(self, principal: Principal, estimate_id: str) -> EstimateObject:
        """One estimate as it is now; raises NotFoundError."""
        async with self._core.database.read() as session:
            row = await repository.get(session, estimate_id, principal.project_id) if is_id(estimate_id) else None
        if row is None or row.kind != repository.ESTIMATE:
            message = f"There is no estimate {estimate_id[:80]!r} in this project. Estimates are kept for a day."
            raise NotFoundError("estimate_not_found", message, param="estimate_id")
        return await self._shown(row)

    async def _validated(self, row_id: str, wait_seconds: float) -> FineTuneRow:
        """The row once its preflight has ended, or as it is after so long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        with self._core.database.news.about(row_id) as woken:
            while True:
                woken.clear()
                async with self._core.database.read() as session:
                    row = await repository.get(session, row_id)
                left = deadline - loop.time()
                if row is None:
                    raise NotFoundError("estimate_not_found", "The estimate is gone. Ask for a new one.")
                if row.state != State.VALIDATING_FILES or left <= 0:
                    return row
                await rest(woken, min(left, _POLL_SECONDS))

    async def _shown(self, row: FineTuneRow) -> EstimateObject:
        place = (await self._outlook.places([row])).get(row.id) if estimate_views.is_ready(row) else None
        return estimate_views.estimate(row, place, self._core.settings, self._core.clock())
