"""Owns what an adapter is on disk, in PEFT's format: the names of its files and tensors, and what it adds to a weight.
Must not know torch or models: a control plane that merges has neither."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."
LENGTH_BYTES = 8
"""What a safetensors file begins with: the length of its header, little-endian."""

_ENDING = ".lora_A.weight"
_BFLOAT16 = "BF16"
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), _BFLOAT16: np.dtype("<u2")}
_QUIET_NAN = 0x7FC0

Floats = NDArray[np.float32]


class Deltas:
    """What the adapter in a folder adds, tensor by tensor. Raises ValueError for one of transposed layers."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        if config.get("fan_in_fan_out"):
            raise ValueError("adapters of transposed layers are delivered merged")
        rank = config["r"]
        self._scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._tensors = _read(folder / WEIGHTS_FILE)
        self._modules = [
            name.removeprefix(PREFIX).removesuffix(_ENDING) for name in self._tensors if name.endswith(_ENDING)
        ]

    def of(self, tensor: str) -> Floats | None:
        """What is added to the base's tensor; None where nothing is."""
        module = next((module for module in self._modules if _is_weight_of(tensor, module)), None)
        if module is None:
            return None
        a, b = (self._tensors[f"{PREFIX}{module}.lora_{side}.weight"] for side in "AB")
        return delta(a, b, self._scale)


def delta(a: Floats, b: Floats, scale: float) -> Floats:
    """What an adapted layer adds to its weight. Computed here only, so that all merges agree in each bit."""
    return np.float32(scale) * (b @ a)


def to_float32(content: bytes, entry: dict[str, Any]) -> Floats:
    """The tensor that a safetensors header's entry describes. Raises KeyError for an unknown dtype."""
    stored = np.frombuffer(content, _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == _BFLOAT16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def from_float32(values: Floats, dtype: str) -> bytes:
    """The tensor's bytes in the dtype, rounded to the nearest, ties to even."""
    if dtype != _BFLOAT16:
        return values.astype(_DTYPES[dtype]).tobytes()
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), _QUIET_NAN, rounded).astype(_DTYPES[dtype]).tobytes()


def _read(path: Path) -> dict[str, Floats]:
    content = path.read_bytes()
    start = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    entries = json.loads(content[LENGTH_BYTES:start])
    entries.pop("__metadata__", None)
    return {
        name: to_float32(content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]], entry)
        for name, entry in entries.items()
    }


def _is_weight_of(tensor: str, module: str) -> bool:
    """Published weights often lack the first part of the module's name, or have one more in front."""
    wanted = f"{module}.weight"
    return tensor == wanted or tensor.endswith(f".{wanted}") or wanted.endswith(f".{tensor}")
