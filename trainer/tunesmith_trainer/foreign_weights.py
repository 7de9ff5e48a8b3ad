"""Owns whether whole weights that were tuned elsewhere are those of the base model's architecture, name by name.
Must not know adapters, data or the control plane."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from tunesmith_trainer.errors import BadData, Problem

_LISTED = 5
# What says how a model came about, is trained or is used, but not what it computes.
_IRRELEVANT = frozenset(
    {
        "bos_token_id",
        "eos_token_id",  # `foreign_texts` holds the stop tokens against the base's
        "initializer_range",
        "max_window_layers",  # `layer_types` says what comes of it
        "pad_token_id",
        "pretraining_tp",
        "use_cache",
    }
)
_DROPOUTS = ("dropout", "pdrop")
_ROUNDING = 1e-6  # relative; converters write the float32 nearest to a number
_ROPE_DEFAULTS = {"partial_rotary_factor": 1.0}
_OLD_WORDS = frozenset({"type"})  # stays beside `rope_type`, which has its value


def require_same_architecture(folder: Path, base: Path) -> None:
    """Raises BadData where the two config.json describe models that compute differently.

    Only what the base's architecture reads is compared, however old the library that wrote it: the model is built by
    the base's config.json.
    """
    own = _settings(base)
    try:
        sent = _settings(folder)
        apart = sorted(name for name in sent.keys() | own.keys() if not _same(sent.get(name), own.get(name)))
    except Exception as error:  # whatever a library makes of a strange file
        message = "config.json does not describe a model that is known here."
        raise BadData(Problem("config_invalid", message, "file")) from error
    if apart:
        message = (
            f"config.json has another {_named(apart)} than the base model. Choose the base that it was tuned from."
        )
        raise BadData(Problem("config_differs", message, "base_model"))


def require_fitting_weights(folder: Path, empty: nn.Module) -> None:
    """Raises BadData unless the folder's tensors are those of the base model, all of them, and finite.

    Reads one tensor at a time. `empty` is the base model without weights.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    tied = _tied_names(empty)
    seen: set[str] = set()
    heads: list[torch.Tensor] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  no mapping
                tensor = file.get_tensor(name)
                _check(name, tensor, wanted)
                if name in seen:
                    message = f"{name} is in more than one of the files. Upload one model."
                    raise BadData(Problem("weights_repeated", message, "file"))
                seen.add(name)
                heads += [tensor] if name in tied else []
    if len(heads) > 1 and not torch.equal(heads[0], heads[1]):
        message = (
            f"{' and '.join(sorted(tied))} are one in the base model, but differ here. Untied heads are not served."
        )
        raise BadData(Problem("weights_untied", message, "file"))
    missing = sorted(wanted.keys() - seen - (tied if heads else set()))
    if missing:
        message = f"The weights lack {_named(missing)}. Upload the whole model, or its adapter alone."
        raise BadData(Problem("weights_missing", message, "file"))


def _tied_names(empty: nn.Module) -> set[str]:
    """Names of embeddings and head where they are the same weights; either will do in a file."""
    embeddings = empty.get_input_embeddings()  # type: ignore[operator]  # transformers models have it
    parameters = empty.named_parameters(remove_duplicate=False)
    names = {name for name, parameter in parameters if parameter is embeddings.weight}
    return names if len(names) > 1 else set()


def _check(name: str, tensor: torch.Tensor, wanted: dict[str, tuple[int, ...]]) -> None:
    if name not in wanted:
        message = f"The base model has no weights {name[:120]!r}. Choose the base that it was tuned from."
        raise BadData(Problem("weights_unknown", message, "base_model"))
    if tuple(tensor.shape) != wanted[name]:
        message = f"{name} has the shape {tuple(tensor.shape)}, that of the base model is {wanted[name]}."
        raise BadData(Problem("weights_shape_mismatch", message, "base_model"))
    if not tensor.isfinite().all():
        message = f"{name} holds numbers that are not finite. Take an earlier checkpoint of the model."
        raise BadData(Problem("weights_not_finite", message, "file"))


def _settings(folder: Path) -> dict[str, Any]:
    """What the model's own class reads of its config.json, with its defaults and in the words of today."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    own = type(config)().to_dict().keys() - PreTrainedConfig().to_dict().keys() - _IRRELEVANT
    read = {name for name in own if not any(word in name for word in _DROPOUTS)} | {"model_type"}
    return {name: value for name, value in config.to_dict().items() if name in read}


def _same(sent: Any, own: Any) -> bool:
    if isinstance(sent, dict) and isinstance(own, dict):  # positions: for all layers, or by their kind
        sent, own = _ROPE_DEFAULTS | sent, _ROPE_DEFAULTS | own
        return all(_same(sent.get(name), own.get(name)) for name in (sent.keys() | own.keys()) - _OLD_WORDS)
    if isinstance(sent, float) or isinstance(own, float):
        numbers = isinstance(sent, (int, float)) and isinstance(own, (int, float))
        return numbers and math.isclose(sent, own, rel_tol=_ROUNDING)
    return bool(sent == own)


def _named(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
