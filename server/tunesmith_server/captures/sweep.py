"""Owns what of captures must go without anybody asking: old ones, rows of deleted ones, bytes that a crash left.

It must not know requests. Every pass may be cut off anywhere and is made good by the next one; replicas may all sweep.
"""

from __future__ import annotations

from tunesmith_server.captures import repository
from tunesmith_server.captures.content import CAPTURES_FOLDER, storage_key
from tunesmith_server.core import Core
from tunesmith_server.storage.orphans import Orphans, delete_objects

SWEEP_SECONDS = 3600.0
"""From one pass to the next: a pass looks at every object."""

_DAY = 86_400


class CapturesSweep:
    """Removes what nobody can see any more."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._orphans = Orphans(core, {CAPTURES_FOLDER: repository.unowned_keys})

    async def run_once(self) -> None:
        """One pass."""
        now = int(self._core.clock())
        while await self._expire(now):
            pass
        async with self._core.database.write() as session:
            await repository.forget_deleted(session, now - _DAY)
        await self._orphans.remove()

    async def _expire(self, now: int) -> bool:
        before = now - self._core.settings.capture_retention_days * _DAY
        async with self._core.database.write() as session:
            ended = await repository.delete_old(session, before, now)
        await delete_objects(self._core, [storage_key(*each) for each in ended], "removed an old capture")
        return bool(ended)
