"""Owns base models from the catalogue to ready: rows that say what the catalogue says, import, publication.

It must not know model formats; the trainer's importer turns a source into a folder of safetensors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from tunesmith_server.core import Core
from tunesmith_server.db.session import DATABASE_FAILURES
from tunesmith_server.db.tables import BaseModelRow
from tunesmith_server.errors import TunesmithError, UnavailableError
from tunesmith_server.registry import repository
from tunesmith_server.registry.base_model_cache import BaseModelCache, CachedModel, ImportFailedError, Progress
from tunesmith_server.registry.catalogue import CatalogueEntry, load_catalogue
from tunesmith_server.registry.changes import ChangeFeed
from tunesmith_server.registry.manifest import MANIFEST_NAME, is_safe_path
from tunesmith_server.storage.open import open_store

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 300.0
_PASSING = (UnavailableError, *DATABASE_FAILURES)
"""What storage and database raise while they are full or away."""


class BaseModelImporter:
    """Brings every base model of the catalogue into object storage. `sleep` passes the time between tries."""

    def __init__(
        self,
        core: Core,
        changes: ChangeFeed,
        progress: Progress = _log.info,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._core = core
        self._changes = changes
        self._progress = progress
        self._sleep = sleep
        self._cache = BaseModelCache(core.settings.cache_dir, core.settings.trainer_python, self._fetch)
        self._entries = load_catalogue(core.settings.base_models)

    async def sync_catalogue(self) -> None:
        """Writes the catalogue into the database; fast. What needs an import is `importing` afterwards."""
        now = int(self._core.clock())
        async with self._core.database.write() as session:
            for entry in self._entries:
                await repository.sync_base_model(session, entry, now)
            await repository.drop_aliases(session, {entry.id for entry in self._entries})
        self._changes.announce()

    async def import_all(self) -> None:
        """Imports what is not there yet, one after the other; a failure is recorded and does not stop the next.

        What fails because storage or database are full or away stays `importing` and is tried again.
        """
        waiting, pause = list(self._entries), _FIRST_PAUSE_SECONDS
        while waiting := [entry for entry in waiting if not await self._has_ended(entry)]:
            await self._sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def import_named(self, name: str) -> str | None:
        """Imports one entry by id or alias; the reason when it failed.

        Raises KeyError for an unknown name, UnavailableError while the storage is full or away.
        """
        entry = next((entry for entry in self._entries if name in (entry.id, *entry.aliases)), None)
        if entry is None:
            raise KeyError(name)
        return await self._import(entry)

    async def _has_ended(self, entry: CatalogueEntry) -> bool:
        try:
            await self._import(entry)
        except _PASSING as error:
            fields = {"model": entry.id, "reason": str(error)}
            _log.warning("a base model is not imported yet; it is tried again", extra={"fields": fields})
            return False
        return True

    async def _import(self, entry: CatalogueEntry) -> str | None:
        reason = unsupported = None
        try:
            if not await self._is_published(entry):
                model = await self._cache.obtain(entry, self._progress)
                await self._publish(model)
                await self._record(entry, model)
                self._progress(f"base model {entry.id} is ready")
        except ImportFailedError as error:
            reason, unsupported = str(error), error.unsupported
        except _PASSING:
            raise
        except TunesmithError as error:
            reason = error.message
        except Exception:  # a defect in one import must not end the others or the server
            _log.exception("the import of a base model failed unexpectedly", extra={"fields": {"model": entry.id}})
            reason = "The import failed unexpectedly; the server's log has the cause."
        if reason is not None:
            _log.error("a base model was not imported", extra={"fields": {"model": entry.id, "reason": reason}})
            async with self._core.database.write() as session:
                await repository.fail_import(session, entry.id, entry.source, reason, unsupported)
            self._changes.announce()
        return reason

    async def _is_published(self, entry: CatalogueEntry) -> bool:
        async with self._core.database.read() as session:
            row = await session.get(BaseModelRow, entry.id)
        if row is None or row.state != repository.READY or row.source != entry.source:
            return False
        # The database may be older than the bucket that it is used with.
        return await self._core.store.size(f"base_models/{row.revision}/{MANIFEST_NAME}") is not None

    async def _publish(self, model: CachedModel) -> None:
        store, prefix = self._core.store, f"base_models/{model.revision}"
        for file in model.files:
            if await store.size(f"{prefix}/{file.path}") != file.size:
                await store.put_file(f"{prefix}/{file.path}", model.folder / file.path)
        # The manifest comes last: where it is, everything is.
        await store.put_file(f"{prefix}/{MANIFEST_NAME}", model.folder / MANIFEST_NAME)

    async def _record(self, entry: CatalogueEntry, model: CachedModel) -> None:
        async with self._core.database.write() as session:
            await repository.finish_import(
                session,
                entry.id,
                entry.source,
                revision=model.revision,
                files=model.files,
                context_length=model.context_length,
            )
        self._changes.announce()

    async def _fetch(self, entry: CatalogueEntry, folder: Path) -> None:
        settings = self._core.settings.model_copy(update={"storage_url": entry.source})
        store = open_store(settings, self._core.signer)
        names = [key for key in await store.list("") if is_safe_path(key)]
        if not names:
            raise ImportFailedError(f"There are no files under {entry.source}.")
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                async for chunk in store.read(name):
                    file.write(chunk)
