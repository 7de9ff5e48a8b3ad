"""Owns object storage in a folder: whole objects or none, durable once a call has returned.

It must not know what objects mean. An object's bytes never change in place, which is why copies may be hard links.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from tunesmith_server.errors import InvalidRequestError, StorageFullError, UnavailableError
from tunesmith_server.storage.base import ObjectNotFoundError, SignedRequest, StoredObject
from tunesmith_server.storage.keys import check_key
from tunesmith_server.storage.signed_urls import Upload, UrlSigner

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 1024 * 1024
_PAGE_OBJECTS = 1000
_DRAFTS = ".drafts"
_STALE_DRAFT_SECONDS = 24 * 3600
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)

_P = ParamSpec("_P")
_R = TypeVar("_R")


class FilesystemStore:
    """Implements storage.base.ObjectStore below `root`."""

    def __init__(self, root: Path, urls: UrlSigner) -> None:
        self.urls = urls
        self._root = root
        self._drafts = root / _DRAFTS
        self._drafts.mkdir(parents=True, exist_ok=True)
        _remove_stale(self._drafts)

    async def put_file(self, key: str, source: Path) -> None:
        """Stores the bytes of a local file."""
        await _in_thread(self._put_file, key, source)

    async def put_bytes(self, key: str, content: bytes) -> None:
        """Stores small content."""
        await _in_thread(self._put_bytes, key, content)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], upload: Upload) -> None:
        """Stores a stream if it is exactly what was announced; raises InvalidRequestError otherwise."""
        target = self._path(key)
        digest = hashlib.sha256()
        received = 0
        with _translated(), self._draft() as draft:
            async for chunk in chunks:
                received += len(chunk)
                if received > upload.size:
                    break
                digest.update(chunk)
                await asyncio.to_thread(draft.write, chunk)
            if received != upload.size:
                raise InvalidRequestError("size_mismatch", f"The body must have exactly {upload.size} bytes.")
            if digest.hexdigest() != upload.sha256:
                raise InvalidRequestError("sha256_mismatch", "The body has another SHA-256 than was announced.")
            await asyncio.to_thread(_publish, draft, target)

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """Streams the content in chunks of 1 MiB; raises ObjectNotFoundError."""
        file = await _in_thread(_open, self._path(key), key)
        try:
            while chunk := await _in_thread(file.read, _CHUNK_BYTES):
                yield chunk
        finally:
            file.close()

    async def size(self, key: str) -> int | None:
        """Bytes of the object, or None."""
        path = await self.find(key)
        return None if path is None else (await _in_thread(path.stat)).st_size

    async def find(self, key: str) -> Path | None:
        """The file that holds the object, or None; it may be read and never written."""
        path = self._path(key)
        return path if await _in_thread(path.is_file) else None

    async def copy(self, source: str, target: str) -> None:
        """Copies within the store; raises ObjectNotFoundError."""
        await _in_thread(self._copy, source, target)

    async def delete(self, key: str) -> None:
        """Removes the object; no error when there is none."""
        await _in_thread(self._delete, key)

    async def list(self, prefix: str) -> list[str]:
        """Keys that start with `prefix`, sorted."""
        return await _in_thread(_list_keys, self._root, prefix)

    async def remove_abandoned(self) -> None:
        """Removes drafts of crashed writers."""
        await _in_thread(_remove_stale, self._drafts)

    async def scan(self, folder: str) -> AsyncIterator[Sequence[StoredObject]]:
        """All objects below a folder, in pages."""
        found = _walk(self._root, self._path(folder))
        while page := await _in_thread(list, itertools.islice(found, _PAGE_OBJECTS)):
            yield page

    async def presign_get(self, key: str, expires_seconds: int) -> SignedRequest:
        """A URL of this server that reads the object."""
        return SignedRequest(self.urls.get_url(check_key(key), expires_seconds))

    async def presign_put(self, key: str, expires_seconds: int, *, size: int, sha256: str) -> SignedRequest:
        """A URL of this server that writes exactly these bytes."""
        url = self.urls.put_url(check_key(key), expires_seconds, Upload(size, sha256))
        return SignedRequest(url, {"content-length": str(size)})

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _put_file(self, key: str, source: Path) -> None:
        target = self._path(key)
        with source.open("rb") as file, self._draft() as draft:
            shutil.copyfileobj(file, draft, _CHUNK_BYTES)
            _publish(draft, target)

    def _put_bytes(self, key: str, content: bytes) -> None:
        target = self._path(key)
        with self._draft() as draft:
            draft.write(content)
            _publish(draft, target)

    def _copy(self, source: str, target: str) -> None:
        origin, destination = self._path(source), self._path(target)
        link = self._drafts / secrets.token_hex(16)
        try:
            link.hardlink_to(origin)
            _move(link, destination)
        except FileNotFoundError:
            raise ObjectNotFoundError(source) from None
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            self._put_file(target, origin)
        finally:
            # A rename onto another link of the same file does nothing and leaves this one.
            link.unlink(missing_ok=True)

    def _delete(self, key: str) -> None:
        path = self._path(key)
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        for parent in list(path.relative_to(self._root).parents)[:-1]:
            try:
                (self._root / parent).rmdir()
            except OSError:
                return

    @contextmanager
    def _draft(self) -> Iterator[BinaryIO]:
        """A new file that is gone after the block unless it was published."""
        path = self._drafts / secrets.token_hex(16)
        try:
            with path.open("xb") as file:
                yield file
        finally:
            path.unlink(missing_ok=True)


def copy_objects(root: Path, target: Path) -> None:
    """Copies from one store's folder into another what is not there yet; what is deleted meanwhile is left out."""
    for key in _list_keys(root, ""):
        copy = target / key
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                shutil.copyfile(root / key, copy)


def _publish(draft: BinaryIO, target: Path) -> None:
    """Gives a finished draft its name, durably."""
    draft.flush()
    os.fsync(draft.fileno())
    _move(Path(draft.name), target)


def _move(source: Path, target: Path) -> None:
    for attempt in range(3):
        _make_folder(target.parent)
        try:
            source.replace(target)
            break
        except FileNotFoundError:
            # A deletion beside this call may take the empty folder away again.
            if attempt == 2 or not source.exists():
                raise
    _sync_folder(target.parent)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path, key: str) -> BinaryIO:
    try:
        return path.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ObjectNotFoundError(key) from None


def _list_keys(root: Path, prefix: str) -> list[str]:
    folder, _, _ = prefix.rpartition("/")
    keys: list[str] = []
    for current, folders, files in os.walk(root / check_key(folder) if folder else root):
        # No key has a folder of that name, and a copy that nobody has served yet has no drafts.
        folders[:] = [name for name in folders if name != _DRAFTS]
        keys.extend((Path(current) / name).relative_to(root).as_posix() for name in files)
    return sorted(key for key in keys if key.startswith(prefix))


def _walk(root: Path, folder: Path) -> Iterator[StoredObject]:
    for current, _, files in os.walk(folder):
        for name in files:
            path = Path(current, name)
            with suppress(FileNotFoundError):
                # Not the time of its bytes: a copy is a link, whose bytes may be much older than its name.
                yield StoredObject(path.relative_to(root).as_posix(), path.stat().st_ctime)


def _remove_stale(drafts: Path) -> None:
    """Removes what crashed writers left; a draft that another process is writing now is young."""
    oldest = time.time() - _STALE_DRAFT_SECONDS
    for draft in drafts.iterdir():
        with suppress(FileNotFoundError):
            if draft.stat().st_mtime < oldest:
                draft.unlink()


async def _in_thread(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    with _translated():
        return await asyncio.to_thread(function, *args, **kwargs)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _log.exception("object storage failed")
        if error.errno in _FULL:
            raise StorageFullError("storage_full", "The server's storage is full. Tell its operator.") from error
        raise UnavailableError("storage_unavailable", "The server's storage failed. Try again later.") from error
