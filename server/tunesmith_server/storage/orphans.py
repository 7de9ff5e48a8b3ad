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
GRACE_SECONDS = 24 * 3600.0

_log = logging.getLogger(__name__)


class Orphans:
    """Objects without a row below the folders of `finders` that are older than the grace.

    They belong to servers that died: a living one writes the row right after the object. The grace is for an operator
    who has started a server on the wrong database.
    """

    def __init__(self, core: Core, finders: Mapping[str, FindUnowned]) -> None:
        self._core = core
        self._finders = finders

    async def remove(self) -> None:
        """One pass."""
        for folder, find in self._finders.items():
            async for page in self._core.store.scan(folder):
                oldest = self._core.clock() - GRACE_SECONDS
                old = [found.key for found in page if found.changed_at <= oldest]
                async with self._core.database.read() as session:
                    unowned = await find(session, old)
                await delete_objects(self._core, sorted(unowned), "removed an object without a row")


async def delete_objects(core: Core, keys: Collection[str], message: str) -> None:
    """Deletes them one by one and logs the message with each key."""
    for key in keys:
        await core.store.delete(key)
        _log.info(message, extra={"fields": {"key": key}})
