"""Owns the local cache of base models: `<cache>/base_models/<revision>/`, filled by the trainer's importer.

It must not know the database or object storage. Several processes may share a cache: a file lock per model
lets one of them import while the others wait for what it finds. What was imported elsewhere is taken as it is.
Folders of unfinished work bear the name of that lock, so that the next import removes what a killed one has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tunesmith_server.parent_guard import guarded
from tunesmith_server.registry.catalogue import CatalogueEntry
from tunesmith_server.registry.manifest import (
    MANIFEST_NAME,
    ManifestFile,
    canonical_json,
    is_revision_id,
    parse_base_manifest,
    revision_id,
)

Progress = Callable[[str], None]
"""Takes one line for the operator."""
Fetch = Callable[[CatalogueEntry, Path], Awaitable[None]]
"""Downloads the files of an entry whose source is remote into an empty folder."""

_log = logging.getLogger(__name__)

_LOCK_POLL_SECONDS = 0.2
_STOP_SECONDS = 5.0
_CHUNK_BYTES = 65536
_SHOWN_ERROR_CHARACTERS = 500
# Time, level and logger before the importer's sentence.
_LOG_PREFIX = re.compile(r"^\S+ \S+ [A-Z]+ [\w.]+ ")


class ImportFailedError(Exception):
    """A base model cannot be imported; the message is a sentence for the operator.

    `unsupported` is one for users, where it is the model's architecture that cannot be trained.
    """

    def __init__(self, message: str, unsupported: str | None = None) -> None:
        super().__init__(message)
        self.unsupported = unsupported


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A verified base model in the cache."""

    revision: str
    folder: Path
    files: tuple[ManifestFile, ...]
    context_length: int | None
    """Tokens, as the model's config.json says."""


class BaseModelCache:
    """Base models on this machine."""

    def __init__(self, cache_dir: Path, trainer_python: Path, fetch: Fetch) -> None:
        self._folder = cache_dir.absolute() / "base_models"
        self._cache_dir = cache_dir.absolute()
        self._trainer_python = trainer_python
        self._fetch = fetch

    async def obtain(self, entry: CatalogueEntry, progress: Progress) -> CachedModel:
        """The entry's files, from an earlier import or from a new one; raises ImportFailedError."""
        key = await asyncio.to_thread(_index_key, entry)
        note = self._folder / "index" / f"{key}.json"
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            async with _exclusive(note.with_suffix(".lock")):
                found = await asyncio.to_thread(self._recall, note)
                if found is None:
                    await asyncio.to_thread(self._remove_leftovers, key)
                    progress(f"importing {entry.id} from {entry.source} (once per machine; kept in {self._folder})")
                    found = await self._import(entry, key, progress)
                    await asyncio.to_thread(_write_atomically, note, canonical_json({"revision": found.revision}))
        except OSError as error:
            raise ImportFailedError(f"The cache {self._folder} cannot be used: {error}.") from error
        return found

    def _recall(self, note: Path) -> CachedModel | None:
        """The model that an earlier import noted, unless its files are not what they were."""
        try:
            revision = json.loads(note.read_bytes())["revision"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        try:
            return self._load(revision)
        except ImportFailedError as error:
            _log.warning("a cached base model is damaged and is imported again: %s", error)
            # Moved first: whatever of it cannot be deleted no longer stands in the way of the new one.
            damaged = self._folder / f".damaged-{_unfinished(note.stem)}"
            with contextlib.suppress(OSError):
                (self._folder / revision).rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
            return None

    def _remove_leftovers(self, key: str) -> None:
        """Removes what killed processes have left of this import, and of those that nobody has under way."""
        places = ((self._cache_dir / "downloads", "*"), (self._folder, ".taking-*"), (self._folder, ".damaged-*"))
        for folder in [folder for place, names in places for folder in place.glob(names)]:
            owner = folder.name.rpartition("-")[2]
            if owner == key:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            # No such lock, or somebody holds it: not ours to judge.
            with contextlib.suppress(OSError), (self._folder / "index" / f"{owner}.lock").open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)

    async def _import(self, entry: CatalogueEntry, key: str, progress: Progress) -> CachedModel:
        source = entry.source
        downloads = self._cache_dir / "downloads" / _unfinished(key)
        try:
            if source.startswith("s3://"):
                downloads.mkdir(parents=True)
                await self._fetch(entry, downloads)
                source = str(downloads)
            revision = await asyncio.to_thread(self._take_prepared, entry.id, Path(source), key)
            if revision is None:
                revision = await self._run_importer(entry.id, source, progress)
        finally:
            await asyncio.to_thread(shutil.rmtree, downloads, ignore_errors=True)
        return await asyncio.to_thread(self._load, revision)

    def _take_prepared(self, model_id: str, source: Path, key: str) -> str | None:
        """Copies a folder that `import-base --folder` has made; None where the source is anything else."""
        try:
            content = (source / MANIFEST_NAME).read_bytes()
            manifest = parse_base_manifest(content)
        except (OSError, ValueError):
            return None
        if manifest.id != model_id:
            raise ImportFailedError(f"{source} was prepared as {manifest.id!r}. Use that id, or prepare it anew.")
        revision = revision_id(content)
        draft = self._folder / f".taking-{_unfinished(key)}"
        try:
            for path in (MANIFEST_NAME, *(file.path for file in manifest.files)):
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / path, draft / path)
            with contextlib.suppress(OSError):  # another process was first; it is checked like one of our own
                draft.rename(self._folder / revision)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return revision

    async def _run_importer(self, model_id: str, source: str, progress: Progress) -> str:
        importer = (str(self._trainer_python), "-m", "tunesmith_trainer", "import-base")
        process = await asyncio.create_subprocess_exec(
            *guarded(*importer, "--id", model_id, "--source", source, "--cache-dir", str(self._cache_dir)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_importer_environment(),
            # Ctrl-C reaches the whole foreground group; an import ends when its server says so.
            start_new_session=True,
        )
        if process.stdout is None or process.stderr is None:
            raise RuntimeError("the importer was started without pipes")
        last_words: deque[str] = deque(maxlen=1)
        try:
            output, _ = await asyncio.gather(_last_line(process.stdout), _relay(process.stderr, progress, last_words))
            code = await process.wait()
        except BaseException:
            await _stop(process)
            raise
        if code != 0:
            reason = _reason(code, last_words)
            raise ImportFailedError(f"{source} could not be imported: {reason}", _unsupported(output))
        try:
            revision = json.loads(output)["revision"]
        except (ValueError, KeyError, TypeError) as error:
            raise ImportFailedError("The importer did not say what it imported.") from error
        return str(revision)

    def _load(self, revision: str) -> CachedModel:
        """Reads and checks a model folder, every byte of it: what is found is published under these hashes."""
        if not is_revision_id(revision):
            raise ImportFailedError("The importer named a revision that is none.")
        folder = self._folder / revision
        try:
            content = (folder / MANIFEST_NAME).read_bytes()
            if revision_id(content) != revision:
                raise ImportFailedError(f"The manifest in {folder} is not that of this revision.")
            files = parse_base_manifest(content).files
            for file in files:
                _check_file(folder / file.path, file)
            config = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ImportFailedError(f"The folder {folder} is not a whole base model: {error}") from error
        return CachedModel(revision, folder, files, _context_length(config))


def _index_key(entry: CatalogueEntry) -> str:
    fingerprint = []
    folder = Path(entry.source)
    if folder.is_dir():
        # A folder may get other files under the same name.
        for path in sorted(folder.rglob("*")):
            status = path.stat()
            fingerprint.append([str(path.relative_to(folder)), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(canonical_json([entry.id, entry.source, fingerprint])).hexdigest()


def _unfinished(key: str) -> str:
    """A new name for a folder of the import that holds the lock of this key."""
    return f"{uuid4().hex}-{key}"


@asynccontextmanager
async def _exclusive(path: Path) -> AsyncIterator[None]:
    with path.open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL_SECONDS)
        yield


def _write_atomically(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}")  # its writer holds the lock; what a killed one left is overwritten
    draft.write_bytes(content)
    draft.replace(path)


def _importer_environment() -> dict[str, str]:
    # The importer reads files and perhaps the hub; this server's own secrets are no business of its.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUNESMITH_", "AWS_"))}
    return kept | {"TQDM_DISABLE": "1"}


async def _last_line(stream: asyncio.StreamReader) -> bytes:
    last = b""
    async for line in _lines(stream):
        last = line or last
    return last


async def _relay(stream: asyncio.StreamReader, progress: Progress, last_words: deque[str]) -> None:
    async for line in _lines(stream):
        text = line.decode(errors="replace")
        if text:
            last_words.append(text)
            progress(text)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length, cut to their last part: a progress bar rewrites its line and may never end it."""
    rest = b""
    while chunk := await stream.read(_CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        rest = rest[-_CHUNK_BYTES:]
        for line in whole:
            yield line.strip().rpartition(b"\r")[2]
    yield rest.strip().rpartition(b"\r")[2]


def _reason(code: int, last_words: deque[str]) -> str:
    if code > 0 and last_words:
        return _LOG_PREFIX.sub("", last_words[0])[:_SHOWN_ERROR_CHARACTERS]
    return f"the importer ended with status {code}."


def _unsupported(output: bytes) -> str | None:
    """The importer's sentence, where it is about the model's architecture; others may name paths of this machine."""
    try:
        result = json.loads(output)
        return str(result["reason"]) if result["refused"] == "unsupported_architecture" else None
    except (ValueError, KeyError, TypeError):
        return None


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()


def _check_file(path: Path, file: ManifestFile) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
        raise ImportFailedError(f"{path} does not have the {file.size} bytes that its manifest says.")
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != file.sha256:
        raise ImportFailedError(f"{path} does not have the hash that its manifest says.")


def _context_length(config: object) -> int | None:
    if not isinstance(config, dict):
        return None
    length = config.get("max_position_embeddings", config.get("n_positions"))  # GPT-2 has its own word
    return length if type(length) is int and length > 0 else None
