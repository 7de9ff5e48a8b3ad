"""Owns the rules that whole tuned weights must meet before anything loads them, as far as their headers tell.

It must not know storage, engines or base models; everything here is pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith_server.errors import Problem
from tunesmith_server.registry.safetensors_header import Tensor

_DTYPES = frozenset({"F32", "F16", "BF16"})


def full_problems(config: object, tensors: Mapping[str, Tensor]) -> list[Problem]:
    """All that is wrong with the config.json and the tensors of a whole model."""
    if not isinstance(config, dict):
        return [Problem("config_invalid", "config.json must be a JSON object.")]
    problems = []
    if "auto_map" in config:
        message = (
            "config.json must not have auto_map: code of a model's own never runs. Where transformers knows the "
            "model_type by itself, delete that key and send the model again."
        )
        problems.append(Problem("config_has_code", message))
    if not tensors:
        problems.append(Problem("weights_empty", "The weights hold no tensors."))
    wrong = sorted(name for name, tensor in tensors.items() if tensor.dtype not in _DTYPES)
    if wrong:
        problems.append(Problem("weights_dtype", f"{wrong[0][:120]!r} must be F32, F16 or BF16."))
    return problems
