"""Owns merging an adapter into base weights as they stream by: a safetensors file in, one of the same size out.
Must not know models or torch: names and shapes say which tensor a delta belongs to."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith_trainer.adapter_file import LENGTH_BYTES, Deltas, from_float32, to_float32

_CHUNK_BYTES = 1 << 20


def merge_stream(adapter: Path, source: BinaryIO, target: BinaryIO) -> None:
    """Copies the file and adds the adapter in the folder `adapter`, in float32, to the tensors that it adapts.

    Holds one adapted tensor at a time. Equals `lora.merge` bit by bit. Raises ValueError for a file that ends early or
    an adapter of transposed layers, and KeyError for an adapted tensor of an unknown dtype.
    """
    deltas = Deltas(adapter)
    length = _read(source, LENGTH_BYTES)
    header = _read(source, int.from_bytes(length, "little"))
    target.write(length + header)
    entries: dict[str, Any] = json.loads(header)
    entries.pop("__metadata__", None)
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"][0]):
        begin, end = entry["data_offsets"]
        delta = deltas.of(name)
        if delta is None:
            for chunk in _chunks(source, end - begin):
                target.write(chunk)
        else:
            weight = to_float32(_read(source, end - begin), entry)
            target.write(from_float32(weight + delta, entry["dtype"]))
    target.flush()


def _chunks(source: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = _read(source, min(size, _CHUNK_BYTES))
        size -= len(chunk)
        yield chunk


def _read(source: BinaryIO, size: int) -> bytes:
    content = source.read(size)
    if len(content) != size:
        raise ValueError("the weights end early")
    return content
