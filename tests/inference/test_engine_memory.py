from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith_inference.engine_memory import GIBIBYTE, engine_bytes, first_gpu_bytes, gpu_share


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


def test_of_a_gpu_an_engine_takes_what_it_needs_and_leaves_room_for_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(16 * GIBIBYTE)  # 8 billion, two bytes each; sparse
    assert gpu_share(tmp_path, 8, 140 * GIBIBYTE, 2) == pytest.approx(28 / 140)
    assert gpu_share(tmp_path, 8, 48 * GIBIBYTE, 2) == 0.45, "keys give way to a second engine"
    assert gpu_share(tmp_path, 8, 24 * GIBIBYTE, 2) == pytest.approx(21 / 24), "but one has to start"
    assert gpu_share(tmp_path, 8, 16 * GIBIBYTE, 1) == 0.9
    assert gpu_share(tmp_path, 8, None, 2) == 0.45
    (tmp_path / "config.json").write_text('{"dtype": "float32"}')
    assert gpu_share(tmp_path, 8, 80 * GIBIBYTE, 2) == pytest.approx(20 / 80), "a GPU has them in half the width"


@pytest.mark.parametrize(
    ("visible", "answer", "expected"),
    [
        (None, 'echo "$3" | grep -q -- --id=0 && echo 143771', 143_771 << 20),
        ("GPU-b,GPU-a", 'echo "$3" | grep -q -- --id=GPU-b && echo 24564', 24_564 << 20),
        (None, 'echo "[N/A]"', None),
        (None, "exit 9", None),
    ],
)
def test_the_first_gpu_that_is_left_to_us_tells_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, answer: str, expected: int | None
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{answer}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert first_gpu_bytes() == expected
