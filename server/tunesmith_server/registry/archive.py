"""Owns the format of downloads: a tar that is made while it is sent, whose size is known before. Pure but for reading.

It must not know models or where bytes come from.
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive. `chunks` begins to read it and yields exactly `size` bytes."""

    path: str
    size: int
    chunks: Callable[[], AsyncIterator[bytes]]


def archive_size(entries: Sequence[Entry]) -> int:
    """Bytes of the whole archive."""
    return sum(tarfile.BLOCKSIZE + entry.size + _padding(entry) for entry in entries) + len(_END)


async def archive_chunks(entries: Sequence[Entry], modified_at: int) -> AsyncIterator[bytes]:
    """The archive, one file after the other; raises ValueError where a file has another size than was said."""
    for entry in entries:
        yield _header(entry, modified_at)
        sent = 0
        async for chunk in entry.chunks():
            sent += len(chunk)
            yield chunk
        if sent != entry.size:
            raise ValueError(f"{entry.path} has {sent} bytes instead of {entry.size}")
        yield bytes(_padding(entry))
    yield _END


def _header(entry: Entry, modified_at: int) -> bytes:
    info = tarfile.TarInfo(entry.path)
    info.size, info.mtime = entry.size, modified_at
    header = info.tobuf(tarfile.GNU_FORMAT)
    if len(header) != tarfile.BLOCKSIZE:
        raise ValueError(f"the name {entry.path!r} is too long for an archive")
    return header


def _padding(entry: Entry) -> int:
    return -entry.size % tarfile.BLOCKSIZE
