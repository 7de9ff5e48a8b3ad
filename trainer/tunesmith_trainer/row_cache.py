"""Owns the rendered rows of files that were read before: kept by content, found again, thrown away when they are many.
Must not know how rows are rendered or what becomes of them."""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tunesmith_trainer.example import Example
from tunesmith_trainer.findings import Findings
from tunesmith_trainer.row_checks import FileRows
from tunesmith_trainer.texts import Piece
from tunesmith_trainer.transfer import MANIFEST_FILE, sha256_of

logger = logging.getLogger(__name__)

MOST_BYTES = 2 << 30
MOST_SECONDS = 7 * 86400
"""Rows that nobody has asked for that long are removed: they are their owner's, who may have deleted the file."""
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_LIBRARIES = ("transformers", "tokenizers", "jinja2", "numpy")


class RowCache:
    """Rows read with the tokenizer and template of the folder `base`, under `settings`: whatever else they depend on.

    Nothing that goes wrong with the folder stops a run: what cannot be read is made again, what cannot be kept is not.
    """

    def __init__(self, folder: Path, base: Path, settings: Sequence[object], most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._key = [_code(), _tokenizer(base), *settings]
        self._most_bytes = most_bytes

    def read(self, path: Path, param: str, read: Callable[[Path, str], FileRows]) -> FileRows:
        """What `read` makes of a file, or made of the same content before."""
        entry = self._folder / f"{_digest([*self._key, param, path.suffix, sha256_of(path)])}.npz"
        found = _load(entry, param)
        if found is None:
            found = read(path, param)
            try:
                self._keep(entry, found)
            except OSError as error:
                logger.warning("rendered rows are not kept: %s", error)
        return found

    def _keep(self, entry: Path, found: FileRows) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                _write(file, found)
            Path(name).replace(entry)
        finally:
            Path(name).unlink(missing_ok=True)
        self._make_room()

    def _make_room(self) -> None:
        """Removes what was not used for long, and the least recently used where all take too much room."""
        known = [(status.st_mtime, status.st_size, path) for path, status in _files(self._folder)]
        room, oldest = self._most_bytes, time.time() - MOST_SECONDS
        for used, size, path in sorted(known, reverse=True):
            if size > room or used < oldest:
                path.unlink(missing_ok=True)
            else:
                room -= size


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for entry in os.scandir(folder):
        try:
            yield Path(entry.path), entry.stat()
        except FileNotFoundError:  # another run has removed it
            continue


def _load(entry: Path, param: str) -> FileRows | None:
    """What is kept in the file, which counts as used now; None where there is nothing, or nothing whole."""
    if not entry.exists():
        return None
    try:
        # The archive's checksums are compared as its arrays are read.
        with entry.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = _file_rows(param, {name: arrays[name] for name in arrays.files})
        os.utime(entry)
    except Exception as error:  # a damaged archive fails its readers in a dozen ways, and none may stop a run
        logger.warning("rendered rows are made again: %r", error)
        entry.unlink(missing_ok=True)
        return None
    return found


def _write(file: BinaryIO, found: FileRows) -> None:
    examples = found.examples
    about = {
        "rows": found.rows,
        "completions": found.completions,
        "pieces": any(isinstance(one, Piece) for one in examples),
        "findings": found.findings.document(),
    }
    np.savez(
        file,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        lengths=np.array(found.lengths, np.int64),
        numbers=np.array([one.row for one in examples], np.int64),
        ends=np.cumsum([len(one.token_ids) for one in examples], dtype=np.int64),
        split_ends=np.cumsum([len(one.splits) for one in examples], dtype=np.int64),
        splits=np.array([split for one in examples for split in one.splits], np.int64),
        token_ids=np.concatenate([np.zeros(0, np.int32), *(one.token_ids for one in examples)]),
        labelled=np.concatenate([np.zeros(0, np.bool_), *(one.labelled for one in examples)]),
    )


def _file_rows(param: str, arrays: dict[str, Any]) -> FileRows:
    about = json.loads(arrays["about"].tobytes())
    found = FileRows(param, about["rows"], about["completions"], lengths=arrays["lengths"].tolist())
    found.findings.extend(Findings.from_document(about["findings"]))
    made = Piece if about["pieces"] else Example
    ends, split_ends = ([0, *arrays[name].tolist()] for name in ("ends", "split_ends"))
    bounds = zip(arrays["numbers"].tolist(), pairwise(ends), pairwise(split_ends), strict=True)
    for number, (start, end), (first, last) in bounds:
        splits = tuple(arrays["splits"][first:last].tolist())
        found.keep(made(number, arrays["token_ids"][start:end], arrays["labelled"][start:end], splits))
    return found


@cache
def _code() -> str:
    """Changes with this package's sources and with the libraries that render."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return _digest([[sha256_of(source) for source in sources], [metadata.version(name) for name in _LIBRARIES]])


def _tokenizer(base: Path) -> str:
    """Changes with any file of a model's folder but its weights."""
    files = sorted(path for path in base.iterdir() if path.is_file() and path.name != MANIFEST_FILE)
    return _digest([[path.name, sha256_of(path)] for path in files if not path.name.endswith(_WEIGHTS)])


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
