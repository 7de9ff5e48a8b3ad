"""The shape of `method`: every hyperparameter's domain, and options that belong to another method."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith_server.error_rendering import from_validation
from tunesmith_server.fine_tunes.schemas import CreateFineTune

GRADER = {"type": "string_check", "name": "g", "input": "a", "reference": "b", "operation": "eq"}


def body(method: dict[str, Any]) -> dict[str, Any]:
    """A create call with this method."""
    return {"model": "m", "training_file": "file-1", "method": method}


@pytest.mark.parametrize(
    "method",
    [
        {"type": "supervised"},
        {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto", "batch_size": 256}}},
        {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2, "n_epochs": 50}}},
        {"type": "dpo", "dpo": {"hyperparameters": {"beta": "auto"}}},
        {"type": "supervised", "supervised": {"hyperparameters": None}},
        {"type": "dpo", "dpo": {"hyperparameters": None}},
        {"type": "continued_pretraining", "continued_pretraining": {"hyperparameters": None}},
        {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": None}},
        {"type": "continued_pretraining"},
        {"type": "continued_pretraining", "continued_pretraining": {"hyperparameters": {"n_epochs": 1}}},
        {"type": "reinforcement", "reinforcement": {"grader": GRADER}},
        {
            "type": "reinforcement",
            "reinforcement": {
                "grader": GRADER,
                "hyperparameters": {
                    "compute_multiplier": 10,
                    "eval_interval": 1,
                    "eval_samples": "auto",
                    "reasoning_effort": "high",
                },
            },
        },
    ],
)
def test_methods_of_the_published_shape_are_read(method: dict[str, Any]) -> None:
    asked = CreateFineTune.model_validate(body(method))
    assert asked.method is not None
    assert asked.method.type == method["type"]
    assert asked.effective_hyperparameters.batch_size in ("auto", 256)


@pytest.mark.parametrize(
    ("method", "param"),
    [
        ({}, "method.type"),
        ({"type": "ppo"}, "method.type"),
        ({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}, "method.dpo.hyperparameters.beta"),
        ({"type": "dpo", "dpo": {"hyperparameters": {"beta": 2.1}}}, "method.dpo.hyperparameters.beta"),
        ({"type": "dpo", "dpo": {"beta": 1}}, "method.dpo.beta"),
        ({"type": "dpo", "supervised": {}}, "method"),
        ({"type": "supervised", "continued_pretraining": {}}, "method"),
        (
            {"type": "continued_pretraining", "continued_pretraining": {"hyperparameters": {"beta": 1}}},
            "method.continued_pretraining.hyperparameters.beta",
        ),
        (
            {"type": "supervised", "supervised": {"hyperparameters": {"beta": 1}}},
            "method.supervised.hyperparameters.beta",
        ),
        ({"type": "reinforcement", "reinforcement": {}}, "method.reinforcement.grader"),
        ({"type": "reinforcement", "reinforcement": {"grader": {"type": "magic"}}}, "method.reinforcement.grader"),
    ],
)
def test_a_method_of_another_shape_names_its_field(method: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CreateFineTune.model_validate(body(method))
    assert from_validation(caught.value.errors(include_url=False), body(method)).param == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compute_multiplier", 0.000001),
        ("compute_multiplier", 11),
        ("eval_interval", 0),
        ("eval_samples", 1.5),
        ("reasoning_effort", "auto"),
    ],
)
def test_numbers_of_reinforcement_have_their_domains(name: str, value: object) -> None:
    options = {"grader": GRADER, "hyperparameters": {name: value}}
    asked = body({"type": "reinforcement", "reinforcement": options})
    with pytest.raises(ValidationError) as caught:
        CreateFineTune.model_validate(asked)
    param = from_validation(caught.value.errors(include_url=False), asked).param
    assert param == f"method.reinforcement.hyperparameters.{name}"
