"""Owns what an engine is going to need of main memory, predicted before it starts.

It must not know what else runs or how much there is.
"""

from __future__ import annotations

import json
from pathlib import Path

GIBIBYTE = 1024**3

_ITSELF = GIBIBYTE
"""Interpreter, libraries and buffers: 0.7 GiB were measured with vLLM 0.32 on CPU and a model of no size."""
_HALF_WIDE = frozenset({"bfloat16", "float16"})


def engine_bytes(model_folder: Path, kv_cache_gib: int) -> int:
    """What a CPU engine of this model needs: the weights in float32, room for keys and values, the engine itself."""
    stored = sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))
    config = json.loads((model_folder / "config.json").read_bytes())
    dtype = config.get("dtype", config.get("torch_dtype"))
    weights = 2 * stored if dtype in _HALF_WIDE else stored
    return weights + kv_cache_gib * GIBIBYTE + _ITSELF
