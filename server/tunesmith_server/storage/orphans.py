"""Owns the removal of objects that no row points at: what a crash left between an object and its row.

It must not know what the objects are; who enters rows says how to find those without one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.core import Core

FindUnowned = Callable[[AsyncSession, Collection[str]], Awaitable[set[str]]]
"""Those of the keys that no row points at."""

_log = logging.getLogger(__name__)


class Orphans:
    """Objects without a row below the folders of `finders`.

    One that two passes have met belongs to a server that died: a living one writes the row right after the object.
    """

    def __init__(self, core: Core, finders: Mapping[str, FindUnowned]) -> None:
        self._core = core
        self._finders = finders
        self._suspects: set[str] = set()

    async def remove(self) -> None:
        """One pass."""
        unowned = {key for folder, find in self._finders.items() for key in await self._unowned(folder, find)}
        await delete_objects(self._core, sorted(unowned & self._suspects), "removed an object without a row")
        self._suspects = unowned - self._suspects

    async def _unowned(self, folder: str, find: FindUnowned) -> set[str]:
        unowned: set[str] = set()
        async for page in self._core.store.scan(folder):
            async with self._core.database.read() as session:
                unowned |= await find(session, [found.key for found in page])
        return unowned


async def delete_objects(core: Core, keys: Collection[str], message: str) -> None:
    """Deletes them one by one and logs the message with each key."""
    for key in keys:
        await core.store.delete(key)
        _log.info(message, extra={"fields": {"key": key}})
