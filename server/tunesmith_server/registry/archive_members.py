"""Owns reading of a tar that somebody sent: plain files at its top, told from its headers; the rest is refused.

It must not know models. Nothing is unpacked, and no more than headers is read.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_MAX_HEADERS = 8192
_MAX_NOTE_BYTES = 64 * 1024
_PLAIN = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE})
_NOTES = frozenset({tarfile.XHDTYPE, tarfile.XGLTYPE})
# Notes on times and owners are harmless. Others change what the next header says, for readers who heed them.
_HARMLESS_NOTES = ("mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment", "LIBARCHIVE.", "SCHILY.")
_HOW = "Make it with `tar -cf model.tar -C FOLDER .` or have `tunesmith models upload` make it."


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive, whose `size` bytes begin at `offset`."""

    path: str
    size: int
    offset: int


class ArchiveError(ValueError):
    """The archive is refused; `code` is stable, the message says what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_members(file: BinaryIO, size: int) -> list[Member]:
    """All files of an archive of `size` bytes; raises ArchiveError for anything but plain files with plain names."""
    members: dict[str, Member] = {}
    for member in _members(file, size):
        if member.path in members:
            raise ArchiveError("file_repeated", f"The archive holds {member.path[:80]!r} twice. {_HOW}")
        members[member.path] = member
    return list(members.values())


def _members(file: BinaryIO, size: int) -> Iterator[Member]:
    position = 0
    for _ in range(_MAX_HEADERS):
        header = _header(file, position)
        if header is None:
            return
        position += tarfile.BLOCKSIZE
        if not 0 <= header.size <= size - position:
            raise ArchiveError("archive_invalid", f"The archive ends within {header.name[:80]!r}. Send all of it.")
        if header.type in _NOTES:
            _check_notes(file, position, header.size)
        elif header.type in _PLAIN:
            yield Member(_plain_name(header.name), header.size, position)
        elif header.type != tarfile.DIRTYPE or _without_dots(header.name):
            message = f"The archive may hold plain files only, at its top, not {header.name[:80]!r}. {_HOW}"
            raise ArchiveError("member_not_allowed", message)
        position += header.size + (-header.size % tarfile.BLOCKSIZE)
    raise ArchiveError("too_many_files", f"The archive has more than {_MAX_HEADERS} entries. {_HOW}")


def _header(file: BinaryIO, position: int) -> tarfile.TarInfo | None:
    """The header at `position`; None at the end of the archive."""
    file.seek(position)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) == tarfile.BLOCKSIZE and not any(block):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        message = f"The file is not a whole, uncompressed tar. {_HOW}"
        raise ArchiveError("archive_invalid", message) from error


def _check_notes(file: BinaryIO, position: int, size: int) -> None:
    if size > _MAX_NOTE_BYTES:
        raise ArchiveError("archive_invalid", f"The archive has a header of {size} bytes. {_HOW}")
    file.seek(position)
    content = file.read(size)
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or len(length) > 6 or not len(length) < int(length) <= len(content):
            raise ArchiveError("archive_invalid", f"The archive has a header that cannot be read. {_HOW}")
        key = content[len(length) + 1 : int(length)].partition(b"=")[0].decode("utf-8", "replace")
        if not key.startswith(_HARMLESS_NOTES):
            message = f"The archive says {key[:80]!r} of a file, which is not heeded here. {_HOW}"
            raise ArchiveError("member_not_allowed", message)
        content = content[int(length) :]


def _plain_name(name: str) -> str:
    plain = _without_dots(name)
    if not plain or "/" in plain or "\\" in plain or plain == ".." or not plain.isprintable():
        message = f"Files must lie at the top of the archive under plain names, unlike {name[:80]!r}. {_HOW}"
        raise ArchiveError("path_invalid", message)
    return plain


def _without_dots(name: str) -> str:
    """The name as `tar -C FOLDER .` means it."""
    return "" if name in (".", "./") else name.removeprefix("./")
