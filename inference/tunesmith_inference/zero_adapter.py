"""Owns the adapter that changes nothing: PEFT files with zero weights that fit a given base model.

It must not know why engines need one (fleet.py does) or where it is kept.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

_MODULES = ("o_proj", "down_proj", "q_proj", "out_proj", "dense", "c_proj")
"""Linear modules by the names that model families give them; one of them is in every one."""


def write_zero_adapter(base_folder: Path, target: Path) -> None:
    """Writes adapter_model.safetensors and adapter_config.json of rank 1 into the existing folder `target`.

    One module in one layer is enough: engines set all others of the slot to zero themselves. Raises ValueError when the
    base model has no linear module of a known name.
    """
    weight, out_features, in_features = _first_linear(base_folder)
    module = weight.removesuffix(".weight")
    tensors = {
        f"base_model.model.{module}.lora_A.weight": np.zeros((1, in_features), np.float32),
        f"base_model.model.{module}.lora_B.weight": np.zeros((out_features, 1), np.float32),
    }
    save_file(tensors, target / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_folder.name,
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [module.rsplit(".", 1)[-1]],
        "inference_mode": True,
    }
    (target / "adapter_config.json").write_text(json.dumps(config))


def _first_linear(base_folder: Path) -> tuple[str, int, int]:
    """Name and shape (out, in) of the first matrix whose module is in `_MODULES`."""
    for path in sorted(base_folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as weights:
            for name in sorted(weights.keys()):
                if name.endswith(".weight") and name.split(".")[-2] in _MODULES:
                    shape = weights.get_slice(name).get_shape()
                    if len(shape) == 2:
                        return name, shape[0], shape[1]
    raise ValueError(f"no linear module of {', '.join(_MODULES)} in the base model")
