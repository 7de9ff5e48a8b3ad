from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith_inference.engine_memory import GIBIBYTE, engine_bytes


@pytest.mark.parametrize(
    ("config", "weights"),
    [({"dtype": "float32"}, 300), ({"torch_dtype": "bfloat16"}, 600), ({"dtype": "float16"}, 600), ({}, 300)],
)
def test_weights_are_held_in_float32_beside_keys_and_values(
    tmp_path: Path, config: dict[str, str], weights: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    for shard in (1, 2, 3):
        (tmp_path / f"model-{shard}.safetensors").write_bytes(b"x" * 100)
    assert engine_bytes(tmp_path, kv_cache_gib=2) == weights + 2 * GIBIBYTE + GIBIBYTE
