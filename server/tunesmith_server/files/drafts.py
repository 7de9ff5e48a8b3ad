"""Owns bytes on their way in: streamed to a file, measured, gone afterwards.

It must not know what they are for.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tunesmith_server.files.limits import SizeLimit


@dataclass(frozen=True, slots=True)
class Draft:
    """Received bytes; the digests are lower-case hex."""

    path: Path
    size: int
    sha256: str
    md5: str | None
    """Only where it was asked for: it takes longer than all the rest."""


@asynccontextmanager
async def receive(
    folder: Path, chunks: AsyncIterator[bytes], limit: SizeLimit, *, with_md5: bool = False
) -> AsyncIterator[Draft]:
    """Writes the stream to a file below `folder` that lives as long as the block; raises PayloadTooLargeError."""
    path = folder / secrets.token_hex(16)
    sha256 = hashlib.sha256()
    md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None
    size = 0

    def append(file: BinaryIO, chunk: bytes) -> None:
        sha256.update(chunk)
        if md5 is not None:
            md5.update(chunk)
        file.write(chunk)

    try:
        with await asyncio.to_thread(_create, path) as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit.bytes:
                    raise limit.refusal()
                await asyncio.to_thread(append, file, chunk)
        yield Draft(path, size, sha256.hexdigest(), md5.hexdigest() if md5 is not None else None)
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")
