"""Owns LoRA: adapted linear layers, and the adapter's file format, which is PEFT's.
Must not know data, losses or where files go."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trained low-rank delta: y = x·Wᵀ + bias + (alpha / rank)·(x·Aᵀ)·Bᵀ.

    A is (rank, in) and B is (out, rank), both float32 whatever the base's dtype. B starts at zero, A as in PEFT.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        device = base.weight.device
        self.base = base.requires_grad_(requires_grad=False)
        self.scale = alpha / rank
        # Kaiming uniform with a = sqrt(5), as PEFT draws it: the bound is 1 / sqrt(in).
        start = torch.empty(rank, base.in_features).uniform_(-1, 1, generator=generator) / math.sqrt(base.in_features)
        self.lora_A = nn.Parameter(start.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) to (…, out), in x's dtype."""
        a, b = self.lora_A.to(x.dtype), (self.lora_B * self.scale).to(x.dtype)
        delta_input = x.reshape(-1, x.shape[-1])
        out: Tensor = _LoraProduct.apply(delta_input, self.base.weight, self.base.bias, a, b)  # type: ignore[no-untyped-call]  # torch
        return out.view(*x.shape[:-1], -1)


class _LoraProduct(torch.autograd.Function):
    """The adapted product with its sums fused into the multiplications, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        reduced = x @ a.t()
        out = nn.functional.linear(x, weight, bias)
        ctx.save_for_backward(x, weight, a, b, reduced)
        return out.addmm_(reduced, b.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        x, weight, a, b, reduced = ctx.saved_tensors
        grad_reduced = grad @ b
        grad_x = (grad @ weight).addmm_(grad_reduced, a) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_reduced.t() @ x, grad.t() @ reduced


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
