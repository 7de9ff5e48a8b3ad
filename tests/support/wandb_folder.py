"""Owns how a run that Weights & Biases kept offline is read back, by the client's own messages.

It must not know what was to be told.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_FILE_HEADER = 7
_BLOCK = 32768
_RECORD_HEADER = struct.Struct("<IHB")
_LAST_PIECES = (1, 4)
"""Kinds of pieces that end a record: whole, last."""


@dataclass
class OfflineRun:
    """What one run folder holds."""

    run: Any = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the run."""
        return {each.key: json.loads(each.value_json) for each in self.run.config.update}


def read_offline_run(folder: Path) -> OfflineRun:
    """The only run below `folder`."""
    [path] = folder.rglob("run-*.wandb")
    found = OfflineRun()
    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
        elif kind == "history":
            found.steps.append(_values(record.history.item))
        elif kind == "summary":
            found.summary |= _values(record.summary.update)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: pieces within blocks, each behind checksum, length and kind."""
    position, record = _FILE_HEADER, b""
    while position + _RECORD_HEADER.size <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _RECORD_HEADER.size:
            position += left
            continue
        _, length, kind = _RECORD_HEADER.unpack_from(content, position)
        position += _RECORD_HEADER.size
        record += content[position : position + length]
        position += length
        if kind in _LAST_PIECES:
            yield record
            record = b""
