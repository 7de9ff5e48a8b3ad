"""Owns LoRA: which layers are adapted, and reading and writing an adapter.
Must not know the arithmetic of a layer, data, losses or where files go."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith_trainer.adapter_file import CONFIG_FILE, PREFIX, WEIGHTS_FILE, delta
from tunesmith_trainer.four_bit_linear import FourBitLinear
from tunesmith_trainer.lora_linear import LoraLinear


class StoredTransposed(nn.Linear):
    """A layer of GPT-2 seen as a linear one: its weight is a view of what is stored as (in, out)."""

    def __init__(self, stored: Conv1D) -> None:
        super().__init__(stored.nx, stored.nf, device="meta")
        self.weight = nn.Parameter(stored.weight.detach().t(), requires_grad=False)
        self.bias = stored.bias

    def stored(self) -> Conv1D:
        """The layer as the model file has it."""
        made = Conv1D(self.out_features, self.in_features)
        made.weight, made.bias = nn.Parameter(self.weight.detach().t()), self.bias
        return made


def adaptable(model: nn.Module) -> list[str]:
    """Names of the linear layers, without the output head."""
    head = model.get_output_embeddings()  # type: ignore[operator]  # transformers models have it
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | FourBitLinear) and module is not head and not name.endswith(".base")
    ]


def is_meant(module: str, target: str) -> bool:
    """Whether a target - attention, mlp, or the end of a module's name, as in PEFT - means the module."""
    if target == "attention":
        return "attn" in module
    if target == "mlp":
        return ".mlp." in module
    return module == target or module.endswith(f".{target}")


def attach(
    model: nn.Module,
    rank: int,
    alpha: float,
    seed: int,
    targets: Sequence[str] = (),
    *,
    use_rslora: bool = False,
) -> list[str]:
    """Freezes the model and adapts the linear layers that `targets` mean, all but the output head without targets.

    Returns the adapted modules' names.
    """
    model.requires_grad_(requires_grad=False)
    names = [name for name in adaptable(model) if not targets or any(is_meant(name, target) for target in targets)]
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        layer = model.get_submodule(name)
        linear = StoredTransposed(layer) if isinstance(layer, Conv1D) else cast("nn.Linear | FourBitLinear", layer)
        model.set_submodule(name, LoraLinear(linear, rank, alpha, generator, use_rslora=use_rslora))
    return names


def attach_saved(model: nn.Module, folder: Path) -> None:
    """Attaches the adapter that `save` wrote into `folder`. Raises what `load` raises."""
    saved = json.loads((folder / CONFIG_FILE).read_bytes())
    attach(model, saved["r"], saved["lora_alpha"], 0, saved["target_modules"], use_rslora=saved["use_rslora"])
    load(model, folder)


def merge(model: nn.Module) -> None:
    """Adds every delta to its layer's weight, in float32, and leaves a plain model, for which no adapter is needed."""
    for name, layer in list(_layers(model)):
        base = cast("nn.Linear", layer.base)  # as it is exported, never in four bits
        with torch.no_grad():
            a, b = (side.detach().float().cpu().numpy() for side in (layer.lora_A, layer.lora_B))
            added = torch.from_numpy(delta(a, b, layer.scale)).to(base.weight.device)
            base.weight.copy_(base.weight.float() + added)
        model.set_submodule(name, base.stored() if isinstance(base, StoredTransposed) else base)


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
    is_whole = float(first.alpha).is_integer()  # some readers, as Ollama's converter, take no 16.0
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_id,
        "r": first.lora_A.shape[0],
        "lora_alpha": int(first.alpha) if is_whole else first.alpha,
        "target_modules": _target_modules(list(layers), set(adaptable(model))),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": isinstance(first.base, StoredTransposed),
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": first.use_rslora,
    }


def _target_modules(adapted: list[str], others: set[str]) -> list[str]:
    """The shortest ends of names that mean the adapted modules and no others."""
    targets = set()
    for module in adapted:
        parts = module.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        targets.add(next(end for end in ends if not any(is_meant(other, end) for other in others)))
    return sorted(targets)


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
