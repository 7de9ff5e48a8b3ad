"""Owns LoRA: which layers are adapted, and the adapter's file format, which is PEFT's.
Must not know the arithmetic of a layer, data, losses or where files go."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith_trainer.lora_linear import LoraLinear

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."


def attach(model: nn.Module, rank: int, alpha: float, seed: int) -> list[str]:
    """Freezes the model and adapts every linear layer but the output head. Returns the adapted modules' names."""
    model.requires_grad_(requires_grad=False)
    head = model.get_output_embeddings()  # type: ignore[operator]  # transformers models have it
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, LoraLinear(cast("nn.Linear", getattr(owner, leaf)), rank, alpha, generator))
    return names


def save(model: nn.Module, folder: Path, base_model_id: str) -> None:
    """Writes the adapter's two files into `folder`, readable by PEFT and vLLM as a plain LoRA."""
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors(model).items()}
    save_file(on_cpu, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(describe(model, base_model_id), indent=2, sort_keys=True) + "\n")


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors by the names that they have in its file, where they lie now."""
    found = {}
    for name, layer in _layers(model):
        found[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach()
        found[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach()
    return found


def describe(model: nn.Module, base_model_id: str) -> dict[str, object]:
    """What adapter_config.json says of the adapter."""
    layers = dict(_layers(model))
    first = next(iter(layers.values()))
    rank = first.lora_A.shape[0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_id,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def load(model: nn.Module, folder: Path) -> None:
    """Reads weights that `save` wrote into a model that `attach` prepared.

    Raises ValueError when the file holds other layers or shapes than the model.
    """
    stored_tensors = load_file(folder / WEIGHTS_FILE)
    for name, layer in _layers(model):
        for part in ("lora_A", "lora_B"):
            parameter = cast("nn.Parameter", getattr(layer, part))
            stored = stored_tensors.pop(f"{PREFIX}{name}.{part}.weight", None)
            if stored is None or stored.shape != parameter.shape:
                raise ValueError(f"the adapter file does not fit the model at {name}")
            with torch.no_grad():
                parameter.copy_(stored)
    if stored_tensors:
        raise ValueError("the adapter file holds layers that the model does not have")


def _layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))
