"""Owns what `create` and `estimate` can be asked for, and the body that asks for it.
Must not know how it is sent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, Required, TypedDict

Auto = Literal["auto"]
FilePath = str | os.PathLike[str]


class FineTuneRequest(TypedDict, total=False):
    """The arguments of `create` and `estimate`; what is left out is chosen by the server and shown in its answer."""

    model: Required[str]
    """The base model."""
    training_file: Required[FilePath]
    """A file id, or a local path, which is uploaded unless its bytes are stored already."""
    validation_file: FilePath | None
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
    """Of dpo: weight of staying near the base model, above 0 and up to 2."""
    method: str | Mapping[str, object]
    """`supervised`, `dpo`, `continued_pretraining`, or OpenAI's whole `method` object with the hyperparameters."""
    weights: Literal["lora", "full"] | None
    """`lora` trains an adapter, `full` every weight."""
    lora_rank: int | Auto | None
    """Size of the adapter."""
    lora_alpha: float | Auto | None
    """Strength of the adapter."""
    long_rows: Literal["fail", "cut", "drop"] | None
    """What becomes of rows that are longer than the model's context."""
    early_stopping_patience: int | Auto | None
    """Passes that may end without a better validation loss before the run stops; else it trains all of them."""
    metadata: Mapping[str, str] | None
    """Up to 16 pairs to find the job by."""
    auto_start: bool | None
    """False: the job pauses once its files are validated, and `resume` starts it."""
    priority: int | None
    """-100 to 100; higher starts first."""
    devices: int | Auto | None
    """Accelerators of the run."""
    max_run_seconds: int | None
    """Time of running after which the job pauses itself."""
    max_device_seconds: int | None
    """The same, counted for each device."""


def fine_tune_body(
    *,
    model: str,
    training_file: FilePath,
    validation_file: FilePath | None = None,
    suffix: str | None = None,
    seed: int | None = None,
    n_epochs: int | Auto | None = None,
    batch_size: int | Auto | None = None,
    learning_rate_multiplier: float | Auto | None = None,
    beta: float | Auto | None = None,
    method: str | Mapping[str, object] = "supervised",
    weights: Literal["lora", "full"] | None = None,
    lora_rank: int | Auto | None = None,
    lora_alpha: float | Auto | None = None,
    long_rows: Literal["fail", "cut", "drop"] | None = None,
    early_stopping_patience: int | Auto | None = None,
    metadata: Mapping[str, str] | None = None,
    auto_start: bool | None = None,
    priority: int | None = None,
    devices: int | Auto | None = None,
    max_run_seconds: int | None = None,
    max_device_seconds: int | None = None,
) -> dict[str, object]:
    """Return the body of the request; files are still as they were given.

    Raises:
        TypeError: an argument is unknown or missing.
    """
    numbers = _given(
        n_epochs=n_epochs, batch_size=batch_size, learning_rate_multiplier=learning_rate_multiplier, beta=beta
    )
    training = _given(
        weights=weights,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        long_rows=long_rows,
        early_stopping_patience=early_stopping_patience,
    )
    scheduling = _given(
        priority=priority, devices=devices, max_run_seconds=max_run_seconds, max_device_seconds=max_device_seconds
    )
    return _given(
        model=model,
        training_file=training_file,
        validation_file=validation_file,
        suffix=suffix,
        seed=seed,
        method=_method_object(method, numbers),
        training=training or None,
        metadata=metadata,
        auto_start=auto_start,
        scheduling=scheduling or None,
    )


def _given(**values: object) -> dict[str, object]:
    """Return what is not None: the server chooses the rest."""
    return {name: value for name, value in values.items() if value is not None}


def _method_object(method: str | Mapping[str, object], hyperparameters: Mapping[str, object]) -> Mapping[str, object]:
    if isinstance(method, str):
        return {"type": method, method: {"hyperparameters": hyperparameters}}
    if hyperparameters:
        raise ValueError(f"Put {', '.join(hyperparameters)} into the hyperparameters of the method object.")
    return method
