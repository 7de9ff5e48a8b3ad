"""Owns a file on its way in: streamed to disk, measured, gone afterwards.

It must not know what the file is for.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tunesmith_server.errors import PayloadTooLargeError

_STALE_SECONDS = 24 * 3600
_MAX_NAME_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Upload:
    """A received file."""

    path: Path
    size: int
    sha256: str


@asynccontextmanager
async def receive(folder: Path, chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[Upload]:
    """Writes the stream to a file below `folder` that lives as long as the block; raises PayloadTooLargeError."""
    path = folder / secrets.token_hex(16)
    digest = hashlib.sha256()
    size = 0
    try:
        with await asyncio.to_thread(_create, path) as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    message = f"The file may have at most {max_bytes} bytes. Split it into several files."
                    raise PayloadTooLargeError("file_too_large", message, param="file")
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
        yield Upload(path, size, digest.hexdigest())
    finally:
        path.unlink(missing_ok=True)


def display_name(filename: str) -> str:
    """The last part of a client's file name, without anything that could deceive a reader or a shell."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    visible = "".join(char for char in last if unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029")
    return visible.strip(" .")[:_MAX_NAME_LENGTH] or "upload"


def remove_stale(folder: Path) -> None:
    """Removes what a crashed server left; younger files may belong to a living one."""
    oldest = time.time() - _STALE_SECONDS
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")
