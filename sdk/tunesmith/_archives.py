"""Owns unpacking a tar while it arrives: files into a directory, each whole or not there.
Must not know HTTP or what the files are for.
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tunesmith._errors import APIConnectionError, UnexpectedResponseError

Run = Callable[[Callable[[], object]], Awaitable[object]]
"""Runs what blocks, such as writing to a disk, where it disturbs nobody."""

_CHUNK_BYTES = 1 << 20


async def unpack(archive: AsyncIterator[bytes], directory: Path, run: Run) -> list[Path]:
    """Write the archive's files below the directory, which is made, and return their paths.

    Raises:
        APIConnectionError: the archive ended early; files that were complete stay.
        UnexpectedResponseError: it is no archive, or a name in it leads out of the directory.
    """
    reader = _Reader(archive)
    written = []
    while (info := _info(await reader.read(tarfile.BLOCKSIZE))) is not None:
        target = _target(directory, info.name)
        draft = target.with_name(f"{target.name}.part")
        with draft.open("wb") as file:
            await _copy(reader, info.size, file, run)
        draft.replace(target)
        written.append(target)
        await reader.read(-info.size % tarfile.BLOCKSIZE)
    return written


class _Reader:
    """Gives the bytes that arrive in the amounts that are asked for."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._held = b""

    async def read(self, size: int) -> bytes:
        held = bytearray(self._held)
        while len(held) < size:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                raise APIConnectionError("The archive ended before it was complete.", code="connection_broken")
            held += chunk
        self._held = bytes(held[size:])
        return bytes(held[:size])


async def _copy(reader: _Reader, size: int, file: BinaryIO, run: Run) -> None:
    while size > 0:
        content = await reader.read(min(size, _CHUNK_BYTES))
        size -= len(content)
        await run(lambda content=content: file.write(content))  # type: ignore[misc]  # bound now, not later


def _info(header: bytes) -> tarfile.TarInfo | None:
    """Return what a header says of the next file, None at the end."""
    if not any(header):
        return None
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise _unexpected() from error


def _target(directory: Path, name: str) -> Path:
    """Return where a file goes, in a folder that is there."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise _unexpected()
    target = directory / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _unexpected() -> UnexpectedResponseError:
    return UnexpectedResponseError("The server did not send an archive of files.", code="unexpected_response")
