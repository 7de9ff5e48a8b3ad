"""Owns what `create` and `estimate` can be asked for, and the body that asks for it.
Must not know how it is sent.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Literal, Required, TypedDict

from tunesmith.types import File

Auto = Literal["auto"]
FileReference = str | os.PathLike[str] | File


class FineTuneRequest(TypedDict, total=False):
    """The arguments of `create` and `estimate`; what is left out is chosen by the server and shown in its answer."""

    model: Required[str]
    """A base model, or a tuned model or checkpoint of the project to go on from."""
    training_file: Required[FileReference]
    """An uploaded file or its id, or a local path, which is uploaded unless its bytes are stored already."""
    validation_file: FileReference | None
    """Likewise; without it the server carves rows out of the training file."""
    suffix: str | None
    """A word of yours for the model's name."""
    seed: int | None
    """Makes the run repeatable."""
    n_epochs: int | Auto | None
    """Passes over the data, 1 to 50."""
    batch_size: int | Auto | None
    """Rows per optimizer step, 1 to 256."""
    learning_rate_multiplier: float | Auto | None
    """Factor on the server's own learning rate."""
    beta: float | Auto | None
    """Of dpo: weight of staying near the model that the job starts from, above 0 and up to 2."""
    method: str | Mapping[str, object]
    """`supervised`, `dpo`, `continued_pretraining`, or OpenAI's whole `method` object with the hyperparameters."""
    weights: Literal["lora", "full"] | None
    """`lora` trains an adapter, `full` every weight."""
    lora_rank: int | Auto | None
    """Size of the adapter."""
    lora_alpha: float | Auto | None
    """Strength of the adapter."""
    lora_targets: Sequence[str] | None
    """Which layers get adapters: "attention", "mlp" or ends of modules' names; every linear layer but the head else."""
    use_rslora: bool | None
    """Scale the adapter by alpha / √rank instead of alpha / rank."""
    long_rows: Literal["fail", "cut", "drop"] | None
    """What becomes of rows that are longer than the model's context."""
    early_stopping_patience: int | Auto | None
    """Passes that may end without a better validation loss before the run stops; else it trains all of them."""
    metadata: Mapping[str, str] | None
    """Up to 16 pairs to find the job by."""
    integrations: Sequence[Mapping[str, object]] | None
    """Experiment trackers that follow the job, each `{"type": "wandb", "wandb": {"project": ...}}` or
    `{"type": "mlflow", "mlflow": {"experiment": ...}}`; the server's operator sets them up."""
    auto_start: bool | None
    """False: the job pauses once its files are validated, and `resume` starts it."""
    priority: int | None
    """-100 to 100; higher starts first."""
    devices: int | Auto | None
    """Accelerators of the run; else as few as it fits on."""
    max_run_seconds: int | None
    """Time of running after which the job pauses itself."""
    max_device_seconds: int | None
    """The same, counted for each device."""


def fine_tune_body(asked: FineTuneRequest) -> dict[str, object]:
    """Return the body of the request; files are still as they were given.

    Raises:
        TypeError: an argument is unknown or missing.
        ValueError: a number is not finite, or a method object and its hyperparameters are given side by side.
    """
    _check_names(asked)
    _check_numbers(asked)
    body: dict[str, object] = {name: value for name, value in asked.items() if value is not None}
    numbers, training, scheduling = (_taken(body, names) for names in (_NUMBERS, _TRAINING, _SCHEDULING))
    body["method"] = _method_object(asked.get("method", "supervised"), numbers)
    if training:
        body["training"] = training
    if scheduling:
        body["scheduling"] = scheduling
    return body


_NUMBERS = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
_TRAINING = ("weights", "lora_rank", "lora_alpha", "lora_targets", "use_rslora", "long_rows", "early_stopping_patience")
_SCHEDULING = ("priority", "devices", "max_run_seconds", "max_device_seconds")


def _check_names(asked: FineTuneRequest) -> None:
    unknown = sorted(asked.keys() - FineTuneRequest.__annotations__.keys())
    if unknown:
        raise TypeError(f"There is no argument {', '.join(unknown)}.")
    missing = [name for name in ("model", "training_file") if name not in asked]
    if missing:
        raise TypeError(f"The argument {', '.join(missing)} is missing.")


def _check_numbers(asked: FineTuneRequest) -> None:
    for name, value in asked.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}.")


def _taken(body: dict[str, object], names: Sequence[str]) -> dict[str, object]:
    return {name: body.pop(name) for name in names if name in body}


def _method_object(method: str | Mapping[str, object], hyperparameters: Mapping[str, object]) -> Mapping[str, object]:
    if isinstance(method, str):
        return {"type": method, method: {"hyperparameters": hyperparameters}}
    if hyperparameters:
        raise ValueError(f"Put {', '.join(hyperparameters)} into the hyperparameters of the method object.")
    return method
