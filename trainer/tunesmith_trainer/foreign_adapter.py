"""Owns making a plain LoRA - one rank, one scale, targets by name - of an adapter that PEFT wrote elsewhere.
Must not know whole models' weights, data or the control plane."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunesmith_trainer import lora
from tunesmith_trainer.adapter_check import SERVED
from tunesmith_trainer.adapter_file import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from tunesmith_trainer.base_shapes import read_shapes
from tunesmith_trainer.errors import BadData, Problem

_LISTED = 5
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class PlainLora:
    """What a run that trains the adapter further must know of it."""

    rank: int
    alpha: float
    use_rslora: bool
    targets: tuple[str, ...]


def write_plain(source: Path, empty: nn.Module, base_model_id: str, folder: Path, *, merged: bool) -> PlainLora:
    """Writes the adapter in `source` into `folder` as one that engines and trainer load, and that computes the same.

    `empty` is the base model without weights, and gets adapters. `merged`: it will be served as whole weights, so that
    it does not matter which layers engines adapt. Raises BadData where it does not fit the base model.
    """
    config: dict[str, Any] = json.loads((source / CONFIG_FILE).read_bytes())
    stored = load_file(source / WEIGHTS_FILE)
    modules = sorted(name.removeprefix(PREFIX).removesuffix(_A) for name in stored if name.endswith(_A))
    _check(stored, modules, empty, merged=merged)
    plain, tensors = _evened(config, stored, modules)
    lora.attach(empty, plain.rank, plain.alpha, 0, modules, use_rslora=plain.use_rslora)
    described = lora.describe(empty, base_model_id)
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    targets = cast("list[str]", described["target_modules"])
    return replace(plain, targets=tuple(targets))


def _check(stored: dict[str, Tensor], modules: list[str], empty: nn.Module, *, merged: bool) -> None:
    linears = read_shapes(empty).linears
    unknown = [module for module in modules if module not in linears]
    if unknown:
        message = f"The base model has no layer {_named(unknown)} to adapt. Choose the base that it was trained on."
        raise BadData(Problem("adapter_module_unknown", message, "base_model"))
    unserved = [] if merged else sorted({module.rpartition(".")[2] for module in modules} - SERVED)
    if unserved:
        message = f"The adapter changes {_named(unserved)}, which engines do not adapt. Upload the merged weights."
        raise BadData(Problem("adapter_targets_unsupported", message, "file"))
    misfits = [module for module in modules if _shape(stored, module) != linears[module]]
    if misfits:
        message = (
            f"The adapter does not fit the base model at {_named(misfits)}. Choose the base that it was trained on."
        )
        raise BadData(Problem("adapter_shape_mismatch", message, "base_model"))
    broken = [name for name, tensor in stored.items() if not tensor.isfinite().all()]
    if broken:
        message = f"Numbers in {_named(broken)} are not finite. Take an earlier checkpoint of the adapter."
        raise BadData(Problem("weights_not_finite", message, "file"))


def _shape(stored: dict[str, Tensor], module: str) -> tuple[int, int]:
    """(out, in) of the layer that the module's adapter is made for."""
    return stored[f"{PREFIX}{module}{_B}"].shape[0], stored[f"{PREFIX}{module}{_A}"].shape[1]


def _evened(
    config: dict[str, Any], stored: dict[str, Tensor], modules: list[str]
) -> tuple[PlainLora, dict[str, Tensor]]:
    """The same deltas with one rank and scale for all: B takes up a scale of its own, and a lower rank gets zeros."""
    use_rslora = bool(config.get("use_rslora"))
    ranks = {module: stored[f"{PREFIX}{module}{_A}"].shape[0] for module in modules}
    alphas = {module: _alpha_of(config, module) for module in modules}
    rank, alpha = max(ranks.values()), next(iter(alphas.values()))
    plain = PlainLora(rank, alpha, use_rslora, ())
    if len(set(ranks.values())) == 1 and len(set(alphas.values())) == 1:
        return plain, stored
    common = _scale(rank, alpha, use_rslora=use_rslora)
    tensors = {}
    for module, own in ranks.items():
        a, b = (stored[f"{PREFIX}{module}{side}"].float() for side in (_A, _B))
        share = _scale(own, alphas[module], use_rslora=use_rslora) / common
        tensors[f"{PREFIX}{module}{_A}"] = torch.cat([a, a.new_zeros(rank - own, a.shape[1])])
        tensors[f"{PREFIX}{module}{_B}"] = torch.cat([b * share, b.new_zeros(b.shape[0], rank - own)], dim=1)
    return plain, tensors


def _alpha_of(config: dict[str, Any], module: str) -> float:
    """As PEFT looks it up: the first pattern that the module's name ends with."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    alpha: float = next((alpha for key, alpha in patterns.items() if _fits(key, module)), config["lora_alpha"])
    return alpha


def _fits(key: str, module: str) -> bool:
    """Whether the pattern is for the module: to PEFT it is an expression, whose dots stand for any character."""
    start = len(module) - len(key)
    if start < 0 or module[start - 1 : start] not in ("", "."):
        return False
    return all(wanted in (".", char) for wanted, char in zip(key, module[start:], strict=True))


def _scale(rank: int, alpha: float, *, use_rslora: bool) -> float:
    return alpha / (math.sqrt(rank) if use_rslora else rank)


def _named(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
