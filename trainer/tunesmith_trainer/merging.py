"""Owns merging an adapter into base weights as they stream by: a safetensors file in, one of the same size out.
Must not know models: names and shapes say which tensor a delta belongs to."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith_trainer import lora

_LENGTH_BYTES = 8
_CHUNK_BYTES = 1 << 20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def merge_stream(adapter: Path, source: BinaryIO, target: BinaryIO) -> None:
    """Copies the file and adds the adapter in the folder `adapter`, in float32, to the tensors that it adapts.

    Holds one adapted tensor at a time. Equals `lora.merge` bit by bit. Raises ValueError for a file that ends early or
    an adapter of transposed layers, and KeyError for an adapted tensor of an unknown dtype.
    """
    deltas = _Deltas(adapter)
    length = _read(source, _LENGTH_BYTES)
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
            target.write(_added(_read(source, end - begin), entry, delta))
    target.flush()


class _Deltas:
    def __init__(self, adapter: Path) -> None:
        config = json.loads((adapter / lora.CONFIG_FILE).read_bytes())
        if config.get("fan_in_fan_out"):
            raise ValueError("adapters of transposed layers are delivered merged")
        rank = config["r"]
        self._scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._tensors = load_file(adapter / lora.WEIGHTS_FILE)
        ending = ".lora_A.weight"
        self._modules = [
            name.removeprefix(lora.PREFIX).removesuffix(ending) for name in self._tensors if name.endswith(ending)
        ]

    def of(self, tensor: str) -> Tensor | None:
        """What is added to the base's tensor, in float32; None where nothing is."""
        module = next((module for module in self._modules if _is_weight_of(tensor, module)), None)
        if module is None:
            return None
        a, b = (self._tensors[f"{lora.PREFIX}{module}.lora_{side}.weight"].float() for side in "AB")
        delta: Tensor = self._scale * (b @ a)
        return delta


def _is_weight_of(tensor: str, module: str) -> bool:
    """Published weights often lack the first part of the module's name, or have one more in front."""
    wanted = f"{module}.weight"
    return tensor == wanted or tensor.endswith(f".{wanted}") or wanted.endswith(f".{tensor}")


def _added(content: bytes, entry: dict[str, Any], delta: Tensor) -> bytes:
    weight = torch.frombuffer(bytearray(content), dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    weight.copy_(weight.float() + delta)
    return weight.view(torch.uint8).numpy().tobytes()


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
