"""Owns the rules that an adapter must meet so that every engine loads it: vLLM's own, checked before it sees the file.

It must not know storage or engines; everything here is pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunesmith_server.errors import Problem
from tunesmith_server.registry.safetensors_header import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor shapes of a base model by name."""

_DTYPES = frozenset({"F32", "F16", "BF16"})
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<side>[AB])\.weight")
_MODULE_PATTERN = re.compile(r"[A-Za-z0-9_.]+")
_MAX_PATTERN_CHARACTERS = 64 * 1024  # enough for each module of a large model; all are held against all
_UNSUPPORTED_FEATURES = (
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "use_bdlora",
    "use_qalora",
    "target_parameters",
    "trainable_token_indices",
    "megatron_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
    "auto_mapping",
)


def config_problems(config: object, *, base_model_id: str, max_rank: int) -> list[Problem]:
    """All that keeps an adapter_config.json from being served on `base_model_id` with engines of rank `max_rank`."""
    problems = foreign_config_problems(config, max_rank=max_rank)
    if not isinstance(config, dict):
        return problems
    if config.get("base_model_name_or_path") != base_model_id:
        message = f"The adapter's base_model_name_or_path must be {base_model_id!r}."
        problems.append(Problem("adapter_base_mismatch", message))
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        problems.append(Problem("adapter_targets_invalid", "The adapter's target_modules must be a list of names."))
    return problems


def tensor_problems(config: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Shapes) -> list[Problem]:
    """All that is wrong with the tensors of an adapter whose config is without problems.

    `base` has the shapes of the base model's weights: every adapted module must exist there and fit.
    """
    sides, problems = _by_module(tensors)
    for module, pair in sides.items():
        problems += _pair_problems(config, module, pair) or _base_problems(config, module, pair, base)
    for target in config["target_modules"]:
        if not any(_names(target, module) for module in sides):
            problems.append(Problem("adapter_target_missing", f"No tensor belongs to the target module {target!r}."))
    return problems


def foreign_config_problems(config: object, *, max_rank: int) -> list[Problem]:
    """All that keeps the config of an adapter that was made elsewhere from becoming one of ours.

    It may name its base as it likes, and its targets in any of PEFT's ways, since the tensors tell them.
    """
    if not isinstance(config, dict):
        return [Problem("adapter_config_invalid", "adapter_config.json must be a JSON object.")]
    problems = [*_rank_problems(config, max_rank), *_feature_problems(config)]
    if config.get("peft_type") != "LORA":
        problems.append(Problem("adapter_type_unsupported", "The adapter's peft_type must be LORA."))
    return problems


def foreign_tensor_problems(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Problem]:
    """All that is wrong with the tensors of such an adapter, as far as it shows without the base model."""
    sides, problems = _by_module(tensors)
    for module, pair in sides.items():
        problems += _pair_problems(config, module, pair)
    if not tensors:
        problems.append(Problem("weights_empty", "The adapter holds no tensors."))
    return problems


def _by_module(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[Problem]]:
    """Sides A and B of every adapted module, and what is wrong with names and dtypes."""
    sides: dict[str, dict[str, Tensor]] = {}
    problems = []
    for name, tensor in tensors.items():
        match = _TENSOR_NAME.fullmatch(name)
        if match is None:
            message = f"{name[:120]!r} is not named base_model.model.….lora_A.weight or lora_B.weight."
            problems.append(Problem("adapter_tensor_name", message))
            continue
        if tensor.dtype not in _DTYPES:
            problems.append(Problem("adapter_tensor_dtype", f"{name} must be F32, F16 or BF16, not {tensor.dtype}."))
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    return sides, problems


def _rank_problems(config: dict[str, Any], max_rank: int) -> list[Problem]:
    problems = []
    pattern = config.get("rank_pattern") or {}
    scales = config.get("alpha_pattern") or {}
    if not _is_pattern(pattern) or not _is_pattern(scales):
        # Keys are regular expressions to PEFT; only names and dots are safe to evaluate.
        message = (
            "rank_pattern and alpha_pattern must map plain module names, of no more than "
            f"{_MAX_PATTERN_CHARACTERS} characters together, to numbers."
        )
        return [Problem("adapter_pattern_invalid", message)]
    ranks = [config.get("r"), *pattern.values()]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        problems.append(Problem("adapter_rank_invalid", "Every LoRA rank must be a positive integer."))
    elif max(ranks) > max_rank:
        message = f"The LoRA rank {max(ranks)} is above {max_rank}, the highest that the engines load."
        problems.append(Problem("adapter_rank_too_high", message))
    if not all(_is_positive(alpha) for alpha in [config.get("lora_alpha"), *scales.values()]):
        problems.append(Problem("adapter_alpha_invalid", "Every lora_alpha must be a positive number."))
    return problems


def _feature_problems(config: dict[str, Any]) -> list[Problem]:
    problems = []
    if config.get("use_dora"):
        problems.append(Problem("adapter_uses_dora", "Engines do not load DoRA adapters; train without use_dora."))
    if config.get("bias", "none") != "none":
        problems.append(Problem("adapter_has_bias", "Engines do not load adapters with bias; set bias to none."))
    if config.get("modules_to_save"):
        message = "Engines do not load whole modules from an adapter; leave modules_to_save empty."
        problems.append(Problem("adapter_saves_modules", message))
    init = config.get("init_lora_weights", True)
    if init is not None and not isinstance(init, bool) and not (isinstance(init, str) and init.lower() in _PLAIN_INITS):
        message = "This init_lora_weights changes the base weights; convert the adapter to plain LoRA."
        problems.append(Problem("adapter_init_unsupported", message))
    problems += [
        Problem("adapter_feature_unsupported", f"Engines do not load adapters with {feature}.")
        for feature in _UNSUPPORTED_FEATURES
        if config.get(feature)
    ]
    return problems


def _pair_problems(config: Mapping[str, Any], module: str, pair: Mapping[str, Tensor]) -> list[Problem]:
    if set(pair) != {"A", "B"}:
        return [Problem("adapter_tensor_unpaired", f"{module} must have both lora_A and lora_B.")]
    rank = _rank_of(config, module)
    a, b = pair["A"].shape, pair["B"].shape
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
        message = f"{module} must have lora_A of {rank} x in and lora_B of out x {rank}, not {a} and {b}."
        return [Problem("adapter_rank_mismatch", message)]
    return []


def _base_problems(config: Mapping[str, Any], module: str, pair: Mapping[str, Tensor], base: Shapes) -> list[Problem]:
    if not any(_names(target, module) for target in config["target_modules"]):
        return [Problem("adapter_target_unlisted", f"{module} has tensors but is not in target_modules.")]
    weight = _base_shape(base, f"{module}.weight")
    if weight is None:
        return [Problem("adapter_module_unknown", f"The base model has no module {module}.")]
    a, b = pair["A"].shape, pair["B"].shape
    fitting = (a[1], b[0]) if config.get("fan_in_fan_out") else (b[0], a[1])
    if weight != fitting:
        return [Problem("adapter_shape_mismatch", f"{module} does not fit the base model's shape {weight}.")]
    return []


def _base_shape(base: Shapes, name: str) -> tuple[int, ...] | None:
    # Published weights often have the module's name without its first part, or with one more in front.
    exact = base.get(name)
    if exact is not None:
        return exact
    return next((shape for other, shape in base.items() if _names(other, name) or _names(name, other)), None)


def _rank_of(config: Mapping[str, Any], module: str) -> int:
    for name, rank in (config.get("rank_pattern") or {}).items():
        if _fits(name, module):
            return int(rank)
    return int(config["r"])


def _fits(key: str, module: str) -> bool:
    """Whether the pattern is for the module: to PEFT it is an expression, whose dots stand for any character."""
    start = len(module) - len(key)
    if start < 0 or module[start - 1 : start] not in ("", "."):
        return False
    return all(wanted in (".", char) for wanted, char in zip(key, module[start:], strict=True))


def _names(suffix: str, module: str) -> bool:
    return module == suffix or module.endswith(f".{suffix}")


def _is_pattern(value: object) -> bool:
    if not isinstance(value, dict) or sum(map(len, value)) > _MAX_PATTERN_CHARACTERS:
        return False
    return all(_MODULE_PATTERN.fullmatch(key) for key in value)


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9
