"""Owns the reading of a safetensors header: names, dtypes and shapes, checked before any framework sees the file.

It must not know what the tensors are for; everything here is pure and bounded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 32 * 1024 * 1024

_MAX_DIMENSIONS = 8
_DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
_METADATA = "__metadata__"
_FORMATS = ("pt", "mlx")


class HeaderError(ValueError):
    """The file is not well-formed; the message says where."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header declares it."""

    dtype: str
    shape: tuple[int, ...]


class HeaderCollector:
    """Keeps the header of a file that streams by, and no more of it."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._wanted = LENGTH_BYTES

    @property
    def complete(self) -> bool:
        """Whether every byte of the header has been seen."""
        return self._wanted > LENGTH_BYTES and len(self._head) >= self._wanted

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the file; raises HeaderError when the header is too long."""
        missing = self._wanted - len(self._head)
        if missing > 0:
            self._head += chunk[:missing]
            if self._wanted == LENGTH_BYTES and len(self._head) == LENGTH_BYTES:
                self._wanted += _header_length(bytes(self._head))
                self.feed(chunk[missing:])

    def tensors(self, file_size: int) -> dict[str, Tensor]:
        """The declared tensors by name; raises HeaderError. `file_size` is that of the whole file in bytes."""
        if len(self._head) < LENGTH_BYTES:
            raise HeaderError(f"The file has {len(self._head)} bytes, too few to be safetensors.")
        if not self.complete:
            raise HeaderError("The file ends before its header does.")
        return parse_header(bytes(self._head[LENGTH_BYTES:]), file_size - len(self._head))


def parse_header(header: bytes, data_bytes: int) -> dict[str, Tensor]:
    """Reads the JSON part of a header for `data_bytes` bytes of tensor data; raises HeaderError."""
    try:
        value = json.loads(header, object_pairs_hook=_without_repeats)
    except HeaderError:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderError("The header is not JSON.") from error
    if not isinstance(value, dict):
        raise HeaderError("The header is not a JSON object.")
    _check_metadata(value.pop(_METADATA, {}))
    extents = []
    tensors = {}
    for name, entry in value.items():
        tensor, begin, end = _tensor(name, entry)
        tensors[name] = tensor
        extents.append((begin, end))
    _check_extents(extents, data_bytes)
    return tensors


def _header_length(head: bytes) -> int:
    length = int.from_bytes(head, "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise HeaderError(f"The header claims {length} bytes; 2 to {MAX_HEADER_BYTES} are accepted.")
    return length


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise HeaderError("A name appears twice in the header.")
    return value


def _check_metadata(metadata: object) -> None:
    # Tools put their names and versions here, which nothing here reads. Of other formats the weights lie otherwise.
    if not isinstance(metadata, Mapping) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("The header's metadata must map names to texts.")
    if metadata.get("format", "pt") not in _FORMATS:
        raise HeaderError(f"The header's metadata may name the format {' or '.join(_FORMATS)}, or none.")


def _tensor(name: str, entry: object) -> tuple[Tensor, int, int]:
    shown = repr(name[:120])
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"{shown} must have dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise HeaderError(f"{shown} has an unknown dtype.")
    if not _is_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise HeaderError(f"{shown} has an impossible shape.")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise HeaderError(f"{shown} has impossible data_offsets.")
    begin, end = offsets
    if end - begin != math.prod(shape) * _DTYPE_BYTES[dtype]:
        raise HeaderError(f"{shown} has a shape that does not fit its data_offsets.")
    return Tensor(dtype=dtype, shape=tuple(shape)), begin, end


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**53 for item in value)


def _check_extents(extents: list[tuple[int, int]], data_bytes: int) -> None:
    position = 0
    for begin, end in sorted(extents):
        if begin != position:
            raise HeaderError("The tensors' data overlap or leave a gap.")
        position = end
    if position != data_bytes:
        raise HeaderError("The tensors' data do not fill the file exactly.")
