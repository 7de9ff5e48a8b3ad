"""Owns what must go without anybody asking: expired files and uploads, and the bytes that a crash left behind.

It must not know requests. Every pass may be cut off anywhere and is made good by the next one; replicas may all sweep.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.core import Core
from tunesmith_server.files import repository, upload_repository
from tunesmith_server.files.intake import FILES_FOLDER
from tunesmith_server.files.upload_service import PARTS_FOLDER, remove_parts

SWEEP_SECONDS = 300.0
"""From one pass to the next; an object without a row that two passes have met belongs to a server that died,
because a living one writes the row right after the object."""
COMPLETION_GRACE_SECONDS = 3600
"""How long the parts of an expired upload stay for a completion that began in time."""

_FindUnowned = Callable[[AsyncSession, Collection[str]], Awaitable[set[str]]]

_log = logging.getLogger(__name__)


class FilesSweep:
    """Removes what nobody can see any more."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._suspects: set[str] = set()

    async def run_once(self) -> None:
        """One pass."""
        await self._core.store.remove_abandoned()
        await self._expire_files()
        await self._end_uploads()
        await self._remove_orphans()

    async def _expire_files(self) -> None:
        async with self._core.database.write() as session:
            keys = await repository.delete_expired(session, int(self._core.clock()))
        await self._delete_objects(keys, "removed an expired file")

    async def _end_uploads(self) -> None:
        async with self._core.database.write() as session:
            await upload_repository.expire_due(session, int(self._core.clock()) - COMPLETION_GRACE_SECONDS)
            ended = await upload_repository.ended_with_parts(session)
        for upload_id in ended:
            await remove_parts(self._core, upload_id)

    async def _remove_orphans(self) -> None:
        unowned = await self._unowned(FILES_FOLDER, repository.unowned_keys)
        unowned |= await self._unowned(PARTS_FOLDER, upload_repository.unowned_keys)
        await self._delete_objects(sorted(unowned & self._suspects), "removed an object without a row")
        self._suspects = unowned - self._suspects

    async def _unowned(self, folder: str, find: _FindUnowned) -> set[str]:
        unowned: set[str] = set()
        async for page in self._core.store.scan(folder):
            async with self._core.database.read() as session:
                unowned |= await find(session, [found.key for found in page])
        return unowned

    async def _delete_objects(self, keys: Collection[str], message: str) -> None:
        for key in keys:
            await self._core.store.delete(key)
            _log.info(message, extra={"fields": {"key": key}})
