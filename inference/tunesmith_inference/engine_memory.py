"""Owns what an engine is going to need of main memory or of its GPU, predicted before it starts.

It must not know what else runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

GIBIBYTE = 1024**3

_ITSELF = GIBIBYTE
"""Interpreter, libraries and buffers: 0.7 GiB were measured with vLLM 0.32 on CPU and a model of no size."""
_ITSELF_ON_GPU = 4 * GIBIBYTE
"""Context, graphs, adapters' slots and what a full batch passes on: not measured. What is left of it holds keys."""
_MOST_OF_A_GPU = 0.9
_DRIVER_SECONDS = 30.0
_HALF_WIDE = frozenset({"bfloat16", "float16"})


def engine_bytes(model_folder: Path, kv_cache_gib: int) -> int:
    """What a CPU engine of this model needs: the weights in float32, room for keys and values, the engine itself."""
    return _numbers(model_folder) * 4 + kv_cache_gib * GIBIBYTE + _ITSELF


def gpu_share(model_folder: Path, kv_cache_gib: int, capacity: int | None, engines: int) -> float:
    """The part of a GPU of so many bytes that one of so many engines takes for this model: runs have the rest.

    Its weights are two bytes wide there. Where the engines would not fit beside each other, keys and values give way,
    down to a gibibyte. An equal part where the capacity is not known.
    """
    equal = _MOST_OF_A_GPU / engines
    if capacity is None:
        return equal
    itself = _numbers(model_folder) * 2 + _ITSELF_ON_GPU
    least, wanted = itself + GIBIBYTE, itself + kv_cache_gib * GIBIBYTE
    return min(_MOST_OF_A_GPU, max(least / capacity, min(wanted / capacity, equal)))


def first_gpu_bytes() -> int | None:
    """Memory of the first GPU that CUDA shows to this process, where nvidia-smi tells it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip() or "0"
    query = [command, "--query-gpu=memory.total", "--format=csv,noheader,nounits", f"--id={first}"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    mebibytes = answer.stdout.strip()
    return int(mebibytes) << 20 if mebibytes.isdecimal() else None


def _numbers(model_folder: Path) -> int:
    """How many weights there are in the files."""
    stored = sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))
    config = json.loads((model_folder / "config.json").read_bytes())
    return stored // (2 if config.get("dtype", config.get("torch_dtype")) in _HALF_WIDE else 4)
