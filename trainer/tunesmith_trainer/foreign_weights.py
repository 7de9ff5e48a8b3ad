"""Owns whether whole weights that were tuned elsewhere are those of the base model's architecture, name by name.
Must not know adapters, data or the control plane."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig

from tunesmith_trainer.errors import BadData, Problem

_LISTED = 5
# What says how a model came about or is used, but not what it computes.
_IRRELEVANT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


def require_same_architecture(folder: Path, base: Path) -> None:
    """Raises BadData where the two config.json describe models that compute differently."""
    try:
        sent = _settings(folder)
    except Exception as error:  # whatever a library makes of a strange file
        message = "config.json does not describe a model that is known here."
        raise BadData(Problem("config_invalid", message, "file")) from error
    own = _settings(base)
    apart = sorted(name for name in sent.keys() | own.keys() if sent.get(name) != own.get(name))
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
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return {name: value for name, value in config.to_dict().items() if name not in _IRRELEVANT}


def _named(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
