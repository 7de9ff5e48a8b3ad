"""The shape of a create request: what is accepted, and that each refusal names its field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tunesmith_server.error_rendering import from_validation
from tunesmith_server.fine_tunes.schemas import CreateFineTune

MINIMAL = {"model": "m", "training_file": "file-1"}


@given(st.integers(1, 50), st.integers(1, 256), st.floats(0.001, 100))
def test_numbers_within_the_ranges_are_kept(n_epochs: int, batch_size: int, multiplier: float) -> None:
    numbers = {"n_epochs": n_epochs, "batch_size": batch_size, "learning_rate_multiplier": multiplier}
    request = CreateFineTune.model_validate(MINIMAL | {"hyperparameters": numbers})
    assert request.effective_hyperparameters.model_dump() == numbers


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ({"type": "supervised"}, (8, "auto")),
        ({"type": "supervised", "supervised": {}}, (8, "auto")),
        ({"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 4}}}, (8, 4)),
        ({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}, (2, "auto")),
        ({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}, (8, "auto")),
    ],
)
def test_each_number_may_be_in_either_place_and_the_methods_wins(
    method: dict[str, Any], found: tuple[Any, Any]
) -> None:
    request = CreateFineTune.model_validate(MINIMAL | {"method": method, "hyperparameters": {"n_epochs": 8}})
    numbers = request.effective_hyperparameters
    assert (numbers.n_epochs, numbers.batch_size) == found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hyperparameters.n_epochs", 0),
        ("hyperparameters.n_epochs", 51),
        ("hyperparameters.n_epochs", 1.5),
        ("hyperparameters.n_epochs", True),
        ("hyperparameters.n_epochs", "3"),
        ("hyperparameters.n_epochs", float("nan")),
        ("hyperparameters.batch_size", 257),
        ("hyperparameters.learning_rate_multiplier", 0),
        ("hyperparameters.learning_rate_multiplier", -1),
        ("hyperparameters.learning_rate_multiplier", float("inf")),
        ("hyperparameters.epochs", 3),
        ("training.lora_rank", 0),
        ("training.weights", "half"),
        ("seed", -1),
        ("seed", 2**31),
        ("seed", "1"),
        ("suffix", ""),
        ("suffix", "x" * 65),
        ("suffix", "a b"),
        ("suffix", "a:b"),
        ("suffix", "../a"),
        ("metadata", {str(number): "" for number in range(17)}),
        ("metadata", {"k" * 65: "v"}),
        ("metadata", {"k": "v" * 513}),
        ("metadata", {"": "v"}),
        ("metadata", {"k\x00": "v"}),
        ("model", ""),
        ("surprise", 1),
        ("scheduling.priority", 101),
        ("scheduling.priority", "1"),
        ("scheduling.devices", 0),
        ("scheduling.max_run_seconds", 0),
        ("scheduling.max_device_seconds", 1.5),
        ("scheduling.nice", 1),
        ("auto_start", "no"),
        ("integrations", [{"type": "wandb", "wandb": {"project": "p"}}] * 6),
    ],
)
def test_a_refusal_names_the_field(field: str, value: Any) -> None:
    outer, _, inner = field.partition(".")
    body = MINIMAL | {outer: {inner: value} if inner else value}
    with pytest.raises(ValidationError) as caught:
        CreateFineTune.model_validate(body)
    assert from_validation(caught.value.errors(include_url=False), body).param == field


@pytest.mark.parametrize("missing", ["model", "training_file"])
def test_what_is_required_is_named(missing: str) -> None:
    body = {name: value for name, value in MINIMAL.items() if name != missing}
    with pytest.raises(ValidationError) as caught:
        CreateFineTune.model_validate(body)
    error = from_validation(caught.value.errors(include_url=False), body)
    assert (error.code, error.param) == ("missing_required_parameter", missing)


@pytest.mark.parametrize(
    ("integration", "code", "words"),
    [
        ({"type": "comet"}, "invalid_value", "input should be one of 'wandb', 'mlflow'"),
        ({"wandb": {"project": "p"}}, "missing_required_parameter", "this parameter is required"),
    ],
)
def test_an_unknown_integration_is_told_which_there_are(integration: dict[str, Any], code: str, words: str) -> None:
    body = MINIMAL | {"integrations": [integration]}
    with pytest.raises(ValidationError) as caught:
        CreateFineTune.model_validate(body)
    error = from_validation(caught.value.errors(include_url=False), body)
    assert (error.code, error.message) == (code, f"`integrations.0.type`: {words}.")


@pytest.mark.parametrize(
    ("integration", "param"),
    [
        ({"type": "tensorboard"}, "integrations.0.type"),
        ({"type": "mlflow"}, "integrations.0.mlflow"),
        ({"type": "mlflow", "mlflow": {"experiment": "e", "uri": "u"}}, "integrations.0.mlflow.uri"),
        ({"type": "mlflow", "wandb": {"project": "p"}}, "integrations.0.mlflow"),
        ({"type": "wandb"}, "integrations.0.wandb"),
        ({"type": "wandb", "wandb": {"name": "n"}}, "integrations.0.wandb.project"),
        ({"type": "wandb", "wandb": {"project": "p", "tags": [1]}}, "integrations.0.wandb.tags.0"),
        ({"type": "wandb", "wandb": {"project": "p", "api_key": "k"}}, "integrations.0.wandb.api_key"),
    ],
)
def test_integrations_have_the_published_shape(integration: dict[str, Any], param: str) -> None:
    body = MINIMAL | {"integrations": [integration]}
    with pytest.raises(ValidationError) as caught:
        CreateFineTune.model_validate(body)
    assert from_validation(caught.value.errors(include_url=False), body).param == param
