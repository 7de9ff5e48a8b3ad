"""Owns the tars that models travel in: unpacked while they arrive, each file whole or not there, and made to be sent.
Must not know HTTP.
"""

from __future__ import annotations

import errno
import re
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tunesmith._errors import APIConnectionError, UnexpectedResponseError

Run = Callable[[Callable[[], object]], Awaitable[object]]
"""Runs what blocks, such as writing to a disk, where it disturbs nobody."""

_CHUNK_BYTES = 1 << 20
_ADAPTER_CONFIG, _MODEL_CONFIG = "adapter_config.json", "config.json"
_ADAPTER_FILES = frozenset({_ADAPTER_CONFIG, "adapter_model.safetensors"})
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_SHARD_NUMBER = re.compile(r"-\d{5}-of-")
_TEXT_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    }
)


async def unpack(archive: AsyncIterator[bytes], directory: Path, run: Run) -> list[Path]:
    """Write the archive's files below the directory, which is made, and return their paths.

    Small files are expected before the weights, as the server sends them: only then is it known what the model is made
    of, and whether the directory may take it. Until then nothing gets the name that it is to have.

    Raises:
        APIConnectionError: the archive ended early; files that were complete stay.
        FileExistsError: a file of another model is in the directory and would be loaded with this one; nothing changed.
        UnexpectedResponseError: it is no archive, or a name in it leads out of the directory.
    """
    reader = _Reader(archive)
    written: list[Path] = []
    waiting: list[Path] = []
    while (info := _info(await reader.read(tarfile.BLOCKSIZE))) is not None:
        target = _target(directory, info.name)
        written.append(target)
        is_weights = target.suffix == ".safetensors"
        if is_weights:
            _put_in_place(waiting, directory, written)
        with _draft(target).open("wb") as file:
            await _copy(reader, info.size, file, run)
        if is_weights:
            _draft(target).replace(target)
        else:
            waiting.append(target)
        await reader.read(-info.size % tarfile.BLOCKSIZE)
    _put_in_place(waiting, directory, written)
    return written


def pack(directory: Path, target: BinaryIO) -> None:
    """Write a tar of those files of a model's directory that are served, as the server's own downloads have it.

    Raises:
        FileNotFoundError: there is no model in the directory.
    """
    names = _model_files(directory)
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            info = tarfile.TarInfo(name)  # without times and owners: the same files give the same bytes
            info.size = (directory / name).stat().st_size
            with (directory / name).open("rb") as file:
                archive.addfile(info, file)
    target.seek(0)


def _model_files(directory: Path) -> list[str]:
    """What lies beside a model - optimizers, logs, other checkpoints - stays where it is."""
    names = _file_names(directory)
    if _ADAPTER_CONFIG in names:
        return [name for name in names if name in _ADAPTER_FILES | _TEXT_FILES]
    if _MODEL_CONFIG in names:
        return [name for name in names if name in _TEXT_FILES | {_MODEL_CONFIG} or _WEIGHTS.fullmatch(name)]
    what = "Neither an adapter (adapter_config.json) nor a whole model (config.json) is in"
    raise FileNotFoundError(errno.ENOENT, what, str(directory))


def _file_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_file())


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


def _draft(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _put_in_place(waiting: list[Path], directory: Path, coming: Sequence[Path]) -> None:
    """Give the drafts that wait their names, or remove them where the directory is another model's."""
    stray = _stray({str(path.relative_to(directory)) for path in coming}, directory) if coming else None
    if stray is not None:
        for target in waiting:
            _draft(target).unlink()
        what = f"Choose an empty folder: {stray}, which is no part of this model, is in"
        raise FileExistsError(errno.EEXIST, what, str(directory))
    for target in waiting:
        _draft(target).replace(target)
    waiting.clear()


def _stray(coming: Set[str], directory: Path) -> str | None:
    """Return a file that loaders would read instead of what comes, or beside it.

    Weights in one piece go before shards, for one, and a configuration of an adapter before that of a whole model.
    """
    # Of the shards the first is known; the others differ from it by their number.
    expected = {_SHARD_NUMBER.sub("-of-", name) for name in coming}
    own = _ADAPTER_FILES | _TEXT_FILES | {_MODEL_CONFIG}
    found = (name for name in _file_names(directory) if name in own or _WEIGHTS.fullmatch(name))
    return next((name for name in found if _SHARD_NUMBER.sub("-of-", name) not in expected), None)


def _unexpected() -> UnexpectedResponseError:
    return UnexpectedResponseError("The server did not send an archive of files.", code="unexpected_response")
