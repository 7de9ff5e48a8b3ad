"""Owns what a user can take away of a tuned model: its own files, or the whole model with the adapter merged in.

It must not know transports. Nothing is copied before it is sent; merged weights are made while they are sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import RevisionRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError, QuotaExceededError, UnavailableError
from tunesmith_server.registry import merging, promotion, repository
from tunesmith_server.registry.archive import Entry, archive_chunks, archive_size
from tunesmith_server.registry.manifest import GOLDEN_NAME, LICENCE_FILES, TEXT_FILES, ArtifactKind, ManifestFile
from tunesmith_server.storage.base import ObjectNotFoundError

_MERGES_AT_ONCE = 2  # of a project: a merge goes on as fast as its client reads
_RETRY_SECONDS = 30.0
_WEIGHTS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Download:
    """A tar of `size` bytes, the same wherever the `etag` is. Nothing is read or merged before `opened`."""

    size: int
    etag: str
    entries: Sequence[Entry]
    modified_at: int
    turn: Callable[[], AbstractContextManager[None]] | None
    """Held while a merge may be under way; None where nothing is merged."""

    @asynccontextmanager
    async def opened(self, start: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes from `start` within the block; raises QuotaExceededError where the project has no turn left."""
        with self.turn() if self.turn is not None else nullcontext():
            async with aclosing(self._chunks(start)) as chunks:
                yield chunks

    async def _chunks(self, skipped: int) -> AsyncGenerator[bytes]:
        entries = list(self.entries)
        # Files that end before the first byte asked for are neither read nor merged.
        while entries and (length := archive_size(entries[:1]) - archive_size(())) <= skipped:
            skipped -= length
            del entries[0]
        async for chunk in archive_chunks(entries, self.modified_at):
            if skipped < len(chunk):
                yield chunk[skipped:]
            skipped = max(0, skipped - len(chunk))


class DownloadsService:
    """Downloads of one project's models at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._merging: Counter[str] = Counter()

    async def open(self, principal: Principal, name: str, *, merged: bool) -> Download:
        """The model's files, small ones first; raises NotFoundError, or InvalidRequestError for a base model.

        `merged`: whole weights also of an adapter. A model that was shared may be prompted and not be taken away.
        """
        async with self._core.database.read() as session:
            model = await repository.get_model(session, principal.project_id, name)
            base = await repository.find_base_model(session, name) if model is None else None
            revision = await repository.get_revision(session, model.revision) if model is not None else None
        if base is not None:
            message = f"{name} is a base model, which is not downloaded from here. Name a tuned model, ft:…."
            raise InvalidRequestError("not_a_tuned_model", message, param="model")
        if model is None or revision is None or model.project_id != principal.project_id:
            message = f"Your project has no tuned model {name[:200]!r}. GET /v1/models lists those that it may prompt."
            raise NotFoundError("model_not_found", message, param="model")
        merges = merged and revision.kind != ArtifactKind.FULL
        entries = await self._entries(revision, merged=merges)
        entries.sort(key=lambda entry: (entry.path.endswith(_WEIGHTS), entry.path))
        turn = partial(self._turn, principal.project_id) if merges else None
        return Download(archive_size(entries), _etag(revision, entries), entries, model.created_at, turn)

    @contextmanager
    def _turn(self, project_id: str) -> Iterator[None]:
        """One of the project's merges; whoever gets none is told so at once, before the answer has a head."""
        if self._merging[project_id] >= _MERGES_AT_ONCE:
            message = (
                f"The project downloads {_MERGES_AT_ONCE} merged models already. "
                "Try again once one has ended, or download the adapter, which needs no merge."
            )
            raise QuotaExceededError("too_many_downloads", message, param="merged", retry_after=_RETRY_SECONDS)
        self._merging[project_id] += 1
        try:
            yield
        finally:
            self._merging[project_id] -= 1

    async def _entries(self, revision: RevisionRow, *, merged: bool) -> list[Entry]:
        own = [ManifestFile(**file) for file in revision.files if file["path"] != GOLDEN_NAME]
        folder, base_folder = f"revisions/{revision.id}", f"base_models/{revision.base_revision}"
        if merged:
            return [
                self._merged(folder, own, base_folder, file)
                if file.path.endswith(_WEIGHTS)
                else self._stored(base_folder, file)
                for file in await self._base_files(revision)
            ]
        beside = await self._texts_beside(revision)
        return [self._stored(folder, file) for file in own] + [self._stored(base_folder, file) for file in beside]

    async def _texts_beside(self, revision: RevisionRow) -> Sequence[ManifestFile]:
        """What of the base's goes along with the model's own files: the licence, and with an adapter the tokenizer."""
        if revision.kind != ArtifactKind.FULL:
            return [file for file in await self._base_files(revision) if file.path in TEXT_FILES | LICENCE_FILES]
        with suppress(UnavailableError):  # the model is whole without its base
            return [file for file in await self._base_files(revision) if file.path in LICENCE_FILES]
        return ()

    async def _base_files(self, revision: RevisionRow) -> Sequence[ManifestFile]:
        try:
            return (await promotion.read_base_manifest(self._core.store, revision.base_revision)).files
        except ObjectNotFoundError as error:
            message = f"The base model {revision.base_model_id} is not in object storage. Import it again."
            raise UnavailableError("base_model_damaged", message) from error

    def _stored(self, folder: str, file: ManifestFile) -> Entry:
        return Entry(file.path, file.size, lambda: self._core.store.read(f"{folder}/{file.path}"))

    def _merged(self, folder: str, adapter: Sequence[ManifestFile], base_folder: str, file: ManifestFile) -> Entry:
        """Deltas change no shape and no dtype, so the file is as long as the base's."""

        async def chunks() -> AsyncIterator[bytes]:
            with tempfile.TemporaryDirectory(dir=self._core.settings.spool) as scratch:
                for part in adapter:
                    await self._fetch(f"{folder}/{part.path}", Path(scratch) / part.path)
                weights = self._core.store.read(f"{base_folder}/{file.path}")
                async for chunk in merging.merged(self._core.settings.trainer_python, Path(scratch), weights):
                    yield chunk

        return Entry(file.path, file.size, chunks)

    async def _fetch(self, key: str, target: Path) -> None:
        with await asyncio.to_thread(target.open, "wb") as file:
            async for chunk in self._core.store.read(key):
                await asyncio.to_thread(file.write, chunk)


def _etag(revision: RevisionRow, entries: Sequence[Entry]) -> str:
    """Another one where a release puts other files into the archive: it would not go on with the same bytes."""
    files = "\n".join(f"{entry.size} {entry.path}" for entry in entries)
    return f'"{revision.id}-{hashlib.sha256(files.encode()).hexdigest()[:16]}"'
