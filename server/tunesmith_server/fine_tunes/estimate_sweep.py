"""Owns the end of estimates: what is older than a day is removed with its rows and objects.

It must not know what was estimated. Several control planes may sweep at once; every step can be repeated.
"""

from __future__ import annotations

from tunesmith_server.core import Core
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.files import repository as files
from tunesmith_server.fine_tunes import estimate_repository, steering

SWEEP_SECONDS = 3600.0

_KEPT_SECONDS = 24 * 3600
_PER_PASS = 500


class EstimateSweep:
    """One pass at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def run_once(self) -> None:
        """Removes old estimates; one that is still validating is cancelled, and removed by a later pass."""
        before = int(self._core.clock()) - _KEPT_SECONDS
        async with self._core.database.read() as session:
            old = await estimate_repository.list_older(session, before, _PER_PASS)
        for row in old:
            await self._cancel(row)
            await self._remove(row)

    async def _cancel(self, row: FineTuneRow) -> None:
        async with self._core.database.write() as session:
            try:
                await steering.cancel(session, row, int(self._core.clock()))
            except InvalidRequestError:
                return  # it has ended

    async def _remove(self, row: FineTuneRow) -> None:
        async with self._core.database.write() as session:
            if not await estimate_repository.remove(session, row.id):
                return
            if row.rejects_file_id is not None:
                await files.mark_deleted(session, row.rejects_file_id, int(self._core.clock()))
        for key in await self._core.store.list(f"runs/{row.id}/"):
            await self._core.store.delete(key)
