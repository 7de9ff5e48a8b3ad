"""Owns whether the adapter that a job will train can be served: which layers it changes, and whether they are there.
Must not know data or memory; rank and alpha are numbers that config.py checks."""

from pathlib import Path

from torch import Tensor, nn

from tunesmith_trainer import lora
from tunesmith_trainer.adapter_file import PREFIX
from tunesmith_trainer.base_shapes import stored_shapes
from tunesmith_trainer.config import TrainingConfig
from tunesmith_trainer.errors import Problem

SERVED = frozenset(
    {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj"}
)
"""What engines replace by adapted layers in the architectures that can be trained here."""

_LISTED = 5


def adapter_problems(folder: Path, model: nn.Module, config: TrainingConfig, *, merged: bool) -> list[Problem]:
    """All that would keep the adapter from being registered and loaded; `model` is the empty base, and gets adapters.

    Weights that lie in the folder already are compared with what its config.json makes of them. `merged`: what is
    learnt is served as whole weights, so that it does not matter which layers engines adapt.
    """
    existing = lora.adaptable(model)
    unknown = [target for target in config.lora_targets if not any(lora.is_meant(name, target) for name in existing)]
    if unknown:
        leaves = ", ".join(sorted({name.rpartition(".")[2] for name in existing}))
        message = f"The base model has no layer {', '.join(unknown)}. It has attention and mlp, which are {leaves}."
        return [Problem("unknown_lora_target", message, "training.lora_targets")]
    modules = lora.attach(model, config.lora_rank, config.lora_alpha, config.seed, config.lora_targets)
    problems = []
    unserved = [] if merged else sorted({module.rpartition(".")[2] for module in modules} - SERVED)
    if unserved or not modules:
        what = ", ".join(unserved) or "no layer at all"
        message = f"The adapter would change {what}, which engines do not adapt. Choose training.weights full."
        problems.append(Problem("adapter_targets_unsupported", message, "training.weights"))
    transposed = bool(modules) and bool(lora.describe(model, "")["fan_in_fan_out"])
    misfits = _misfits(lora.tensors(model), modules, stored_shapes(folder), transposed=transposed)
    if misfits:
        named = ", ".join(misfits[:_LISTED]) + (", …" if len(misfits) > _LISTED else "")
        message = f"The base model's weights do not fit its config.json at {named}: no adapter could be loaded on it."
        problems.append(Problem("adapter_shape_mismatch", message, "model"))
    return problems


def _misfits(
    tensors: dict[str, Tensor], modules: list[str], stored: dict[str, tuple[int, ...]], *, transposed: bool
) -> list[str]:
    """Modules whose adapter does not fit the stored weights; none where no weights are stored."""
    if not stored:
        return []
    fitting = {
        module: (
            tensors[f"{PREFIX}{module}.lora_B.weight"].shape[0],
            tensors[f"{PREFIX}{module}.lora_A.weight"].shape[1],
        )
        for module in modules
    }
    if transposed:
        fitting = {module: (width, out) for module, (out, width) in fitting.items()}
    return [module for module, shape in fitting.items() if _stored_shape(stored, f"{module}.weight") != shape]


def _stored_shape(stored: dict[str, tuple[int, ...]], name: str) -> tuple[int, ...] | None:
    if name in stored:
        return stored[name]
    # Published weights often have the name without its first part, or with one more in front.
    alike = (other for other in stored if name.endswith(f".{other}") or other.endswith(f".{name}"))
    return stored.get(next(alike, ""))
