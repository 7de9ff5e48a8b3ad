"""Owns the removal of revisions that no row names (copies of promotions that never committed) or that are retired.

It must not know jobs. Every pass may be cut off anywhere and is made good by the next one; replicas may all sweep.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tunesmith_server.core import Core
from tunesmith_server.failpoints import reach
from tunesmith_server.registry import claims, manifest, repository
from tunesmith_server.storage.base import StoredObject

FOLDER = "revisions"
GRACE_SECONDS = 24 * 3600.0

_log = logging.getLogger(__name__)


class RevisionsSweep:
    """Removes what is older than the grace and belongs to nobody."""

    def __init__(self, core: Core, grace_seconds: float = GRACE_SECONDS) -> None:
        self._core = core
        self._grace_seconds = grace_seconds

    async def run_once(self) -> None:
        """One pass over all revisions."""
        async for page in self._core.store.scan(FOLDER):
            for revision_id in await self._suspects(page):
                await self._remove(revision_id)
        async with self._core.database.write() as session:
            await claims.forget_old(session, self._core.clock())

    async def _suspects(self, page: Sequence[StoredObject]) -> list[str]:
        oldest = self._core.clock() - self._grace_seconds
        ids = {stored.key.split("/")[1] for stored in page if stored.changed_at <= oldest}
        young = {stored.key.split("/")[1] for stored in page if stored.changed_at > oldest}
        async with self._core.database.read() as session:
            unknown = await repository.unknown_revisions(session, ids - young)
            retired = await repository.retired_revisions(session, ids | young)
        return sorted(filter(manifest.is_revision_id, unknown | retired))

    async def _remove(self, revision_id: str) -> None:
        began = self._core.clock()
        async with self._core.database.write() as session:
            if not await claims.begin_sweep(session, revision_id, began):
                return
        reach("sweep.claimed")
        folder = f"{FOLDER}/{revision_id}"
        # The seal first: without it, a promotion of the same bytes copies all of them again.
        seal = f"{folder}/{manifest.MANIFEST_NAME}"
        for key in [seal, *(await self._core.store.list(f"{folder}/"))]:
            if self._core.clock() - began > claims.SWEEP_SECONDS / 2:
                _log.warning("the removal of a revision takes long; the next pass goes on with it")
                return
            await self._core.store.delete(key)
        async with self._core.database.write() as session:
            await claims.end_sweep(session, revision_id)
        _log.info("removed a revision that nobody needs", extra={"fields": {"revision": revision_id}})
