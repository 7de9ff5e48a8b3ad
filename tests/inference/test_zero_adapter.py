from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tunesmith_inference.zero_adapter import write_zero_adapter


def test_it_fits_the_base_model_and_changes_nothing(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "zero"
    base.mkdir()
    target.mkdir()
    weights = {
        "model.embed_tokens.weight": np.ones((10, 4), np.float32),
        "model.layers.0.mlp.down_proj.weight": np.ones((4, 6), np.float32),
        "model.layers.1.mlp.down_proj.weight": np.ones((4, 6), np.float32),
    }
    save_file(weights, base / "model.safetensors")
    write_zero_adapter(base, target)
    tensors = load_file(target / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0.mlp.down_proj"
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        f"{prefix}.lora_A.weight": (1, 6),
        f"{prefix}.lora_B.weight": (4, 1),
    }
    assert not any(tensor.any() for tensor in tensors.values())
    config = json.loads((target / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (1, ["down_proj"])


def test_a_model_without_a_known_linear_module_is_refused(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": np.ones((10, 4), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no linear module"):
        write_zero_adapter(tmp_path, tmp_path)
