"""Owns the models on this machine: base folders, fetched revisions, zero adapters; complete and verified or absent.

It must not know engines or names of models.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx

from tunesmith_inference.registry_client import RemoteFile, RevisionUnavailable
from tunesmith_inference.router import Kind
from tunesmith_inference.zero_adapter import write_zero_adapter

_ADAPTER_FILES = frozenset({"adapter_model.safetensors", "adapter_config.json", "golden.json"})
_FULL_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "golden.json",
    }
)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# What the importer keeps of a base model, whose makers name files as they like.
_BASE_FILE = re.compile(r"LICENSE|\w[\w.-]{0,127}\.(safetensors|json|jinja|txt|model|md)", re.ASCII)
_NEEDED = {
    Kind.BASE: frozenset({"config.json"}),
    Kind.ADAPTER: _ADAPTER_FILES,
    Kind.FULL: frozenset({"config.json", "golden.json"}),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = 2048
_DOWNLOAD_TIMEOUT = httpx.Timeout(30.0)


class RevisionRefused(Exception):
    """The revision holds something that is never put on this machine's disk, or bytes other than announced."""


class NotFetched(Exception):
    """The revision's files could not be had; another try may work."""


class RevisionCache:
    """Content-addressed folders under `root`. Each one appears by a rename, whole and verified, and never changes.

    `files_of` lists a revision's files with URLs; it is asked once per fetch, so that the URLs are new.
    """

    def __init__(self, root: Path, files_of: Callable[[str], Awaitable[list[RemoteFile]]]) -> None:
        self._root = root
        self._files_of = files_of

    async def base_folder(self, revision: str) -> Path:
        """The base model's folder, fetched unless a control plane beside it has put it there; raises as below."""
        return await self._obtain("base_models", revision, Kind.BASE)

    async def tuned_folder(self, revision: str, kind: Kind) -> Path:
        """The folder of a tuned revision, fetched if need be; raises RevisionRefused or NotFetched."""
        return await self._obtain("revisions", revision, kind)

    async def _obtain(self, area: str, revision: str, kind: Kind) -> Path:
        folder = self._root / area / _checked(revision)
        if not folder.is_dir():
            try:
                files = await self._files_of(revision)
                _check_list(files, kind)
                await self._fetch(folder, files)
            except (httpx.HTTPError, RevisionUnavailable, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else type(error).__name__
                raise NotFetched(f"its files could not be fetched: {reason}") from error
        return folder

    async def zero_adapter_folder(self, base_revision: str) -> Path:
        """An adapter of the base model that changes nothing, made if need be; raises RevisionRefused or NotFetched."""
        folder = self._root / "zero_adapters" / _checked(base_revision)
        if not folder.is_dir():
            base = await self.base_folder(base_revision)
            with _Staging(folder) as staging:
                await asyncio.to_thread(write_zero_adapter, base, staging)
                await asyncio.to_thread(_publish, staging, folder)
        return folder

    async def _fetch(self, folder: Path, files: Sequence[RemoteFile]) -> None:
        with _Staging(folder) as staging:
            async with httpx.AsyncClient(timeout=_DOWNLOAD_TIMEOUT, trust_env=False) as client:
                for file in files:
                    await _download(client, file, staging / file.path)
            await asyncio.to_thread(_publish, staging, folder)


class _Staging:
    """A temporary folder beside the final one, on the same file system; gone on the way out whatever happened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Path:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._path = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._folder.parent))
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


async def _download(client: httpx.AsyncClient, file: RemoteFile, target: Path) -> None:
    digest, size = hashlib.sha256(), 0
    async with client.stream("GET", file.url, follow_redirects=False) as response:
        if response.status_code != 200:
            raise httpx.RemoteProtocolError(f"{file.path}: status {response.status_code}")
        with target.open("xb") as out:
            async for chunk in response.aiter_bytes(1 << 20):
                size += len(chunk)
                if size > file.size:
                    break
                digest.update(chunk)
                out.write(chunk)
    if size < file.size:
        raise httpx.RemoteProtocolError(f"{file.path}: {size} bytes of {file.size} arrived")
    if size > file.size or digest.hexdigest() != file.sha256:
        raise RevisionRefused(f"{file.path} is not what was announced")


def _publish(staging: Path, folder: Path) -> None:
    """Makes the staged files durable and read-only, then gives them their name; a second publisher changes nothing."""
    for path in staging.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _sync_folder(staging)
    try:
        staging.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_list(files: Sequence[RemoteFile], kind: Kind) -> None:
    paths = [file.path for file in files]
    for path in paths:
        if not _belongs(path, kind):
            raise RevisionRefused(f"a file named {path[:80]!r} does not belong into a revision")
    if len(set(paths)) != len(paths) or len(paths) > _MAX_FILES:
        raise RevisionRefused("the list of files repeats a path or is too long")
    missing = _NEEDED[kind] - set(paths)
    if missing:
        raise RevisionRefused(f"{min(missing)} is missing")


def _belongs(path: str, kind: Kind) -> bool:
    if kind is Kind.BASE:
        return _BASE_FILE.fullmatch(path) is not None
    if kind is Kind.FULL:
        return path in _FULL_FILES or _SHARD.fullmatch(path) is not None
    return path in _ADAPTER_FILES


def _checked(revision: str) -> str:
    if not _SHA256.fullmatch(revision):
        raise RevisionRefused("a revision is named by 64 hex digits")
    return revision
