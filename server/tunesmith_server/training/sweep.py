"""Owns the removal of what runs left behind: objects of attempts that are over, and logs of long ago.

It must not know requests. Every pass may be cut off anywhere and is made good by the next one; replicas may all sweep.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tunesmith_server.core import Core
from tunesmith_server.files import repository as files
from tunesmith_server.training import repository

FOLDER = "runs"
GRACE_SECONDS = 24 * 3600.0

_DAY_SECONDS = 24 * 3600
_KEY = re.compile(rf"{FOLDER}/([^/]+)/e(\d+)/.+")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Needs:
    """What of the runs is still needed, or may be."""

    live: Set[tuple[str, int]]
    """Job and epoch of attempts whose runs may still exist."""
    prefixes: Set[str]
    """Folders of checkpoints that a job could resume from."""


class RunsSweep:
    """Removes what is older than the grace and belongs to nobody."""

    def __init__(self, core: Core, grace_seconds: float = GRACE_SECONDS) -> None:
        self._core = core
        self._grace_seconds = grace_seconds

    async def run_once(self) -> None:
        """One pass over all objects of runs and all logs."""
        async for page in self._core.store.scan(FOLDER):
            oldest = self._core.clock() - self._grace_seconds
            old = [stored.key for stored in page if stored.changed_at <= oldest]
            for key in {*await self._orphans(old), *await self._retired([stored.key for stored in page])}:
                await self._core.store.delete(key)
                _log.info("removed what an ended run left", extra={"fields": {"key": key}})
        keep_seconds = self._core.settings.log_retention_days * _DAY_SECONDS
        folder = self._core.settings.home / "logs"
        await asyncio.to_thread(_remove_old_logs, folder, self._core.clock() - keep_seconds)

    async def _orphans(self, keys: Sequence[str]) -> list[str]:
        jobs = {place[1] for key in keys if (place := _KEY.fullmatch(key))}
        async with self._core.database.read() as session:
            # In this order: whatever an attempt that is over has committed is there to be read after its end was.
            live = await repository.live_epochs(session, jobs)
            prefixes = await repository.resumable_prefixes(session, jobs)
            # Results of a job stay where its run has put them, as files of the user's.
            return sorted(await files.unowned_keys(session, orphans(keys, Needs(live, prefixes))))

    async def _retired(self, keys: Sequence[str]) -> list[str]:
        """What is left of checkpoints that their jobs do not keep: of live runs, too, and of any age."""
        jobs = {place[1] for key in keys if (place := _KEY.fullmatch(key))}
        async with self._core.database.read() as session:
            prefixes = await repository.removed_prefixes(session, jobs)
        return [key for key in keys if not prefixes.isdisjoint(str(folder) for folder in Path(key).parents)]


def orphans(keys: Iterable[str], needs: Needs) -> list[str]:
    """Those of the keys that no job needs. Keys that no run can have are not ours to judge."""
    found = []
    for key in keys:
        place = _KEY.fullmatch(key)
        if place is None or (place[1], int(place[2])) in needs.live:
            continue
        if needs.prefixes.isdisjoint(str(folder) for folder in Path(key).parents):
            found.append(key)
    return found


def _remove_old_logs(folder: Path, oldest: float) -> None:
    for path in folder.glob("*.log"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()
