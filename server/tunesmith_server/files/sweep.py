"""Owns what must go without anybody asking: expired files and uploads, and the bytes that a crash left behind.

It must not know requests. Every pass may be cut off anywhere and is made good by the next one; replicas may all sweep.
"""

from __future__ import annotations

from tunesmith_server.core import Core
from tunesmith_server.files import repository, upload_repository
from tunesmith_server.files.intake import FILES_FOLDER
from tunesmith_server.files.upload_service import PARTS_FOLDER, remove_parts
from tunesmith_server.storage.orphans import Orphans, delete_objects

SWEEP_SECONDS = 300.0
"""From one pass to the next."""
COMPLETION_GRACE_SECONDS = 3600
"""How long the parts of an expired upload stay for a completion that began in time."""


class FilesSweep:
    """Removes what nobody can see any more."""

    def __init__(self, core: Core) -> None:
        self._core = core
        finders = {FILES_FOLDER: repository.unowned_keys, PARTS_FOLDER: upload_repository.unowned_keys}
        self._orphans = Orphans(core, finders)

    async def run_once(self) -> None:
        """One pass."""
        await self._core.store.remove_abandoned()
        await self._expire_files()
        await self._end_uploads()
        await self._orphans.remove()

    async def _expire_files(self) -> None:
        async with self._core.database.write() as session:
            keys = await repository.delete_expired(session, int(self._core.clock()))
        await delete_objects(self._core, keys, "removed an expired file")

    async def _end_uploads(self) -> None:
        async with self._core.database.write() as session:
            await upload_repository.expire_due(session, int(self._core.clock()) - COMPLETION_GRACE_SECONDS)
            ended = await upload_repository.ended_with_parts(session)
        for upload_id in ended:
            await remove_parts(self._core, upload_id)
