"""Owns the wire shapes of tuning methods: OpenAI's `method` object with each method's hyperparameters.

It must not know which methods a trainer offers.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainValidator, model_validator

Auto = Literal["auto"]

_GRADERS = ("string_check", "text_similarity", "python", "score_model", "label_model", "multi")
_NO_LIMIT = 2**31 - 1
# The smallest number that still moves a weight; below it lies a typing error.
_TINY = 1e-9


def integer_or_auto(low: int, high: int) -> PlainValidator:
    """Accepts whole numbers from `low` to `high` and the string auto."""

    def check(value: object) -> Any:
        return _number_or_auto(value, low, high, whole=True, wanted=f"an integer from {low} to {high}")

    return PlainValidator(check, json_schema_input_type=int | Auto)


def number_or_auto(high: float, low: float = _TINY) -> PlainValidator:
    """Accepts numbers greater than about 0 (or from `low`) up to `high` and the string auto."""

    def check(value: object) -> Any:
        above = "0" if low == _TINY else f"{low:g}"
        return _number_or_auto(
            value, low, high, whole=False, wanted=f"a number greater than {above} and up to {high:g}"
        )

    return PlainValidator(check, json_schema_input_type=float | Auto)


def _number_or_auto(value: object, low: float, high: float, *, whole: bool, wanted: str) -> Any:
    if value is None or value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"must be {wanted}, or the string auto")
    if not low <= value <= high or (whole and value != int(value)):
        raise ValueError(f"must be {wanted}, or the string auto")
    return int(value) if whole else float(value)


def _check_grader(grader: dict[str, Any]) -> dict[str, Any]:
    if grader.get("type") not in _GRADERS:
        raise ValueError(f"type must be one of {', '.join(_GRADERS)}")
    return grader


_NULL_IS_ABSENT = BeforeValidator(lambda given: {} if given is None else given)


class Hyperparameters(BaseModel):
    """Numbers, or "auto": then the preflight run decides from the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_epochs: Annotated[int | Auto, integer_or_auto(1, 50)] = "auto"
    batch_size: Annotated[int | Auto, integer_or_auto(1, 256)] = "auto"
    learning_rate_multiplier: Annotated[float | Auto, number_or_auto(1000)] = "auto"


class DpoHyperparameters(Hyperparameters):
    """Those of preference tuning; `beta` is the weight of staying near the base model."""

    beta: Annotated[float | Auto, number_or_auto(2)] = "auto"


class ReinforcementHyperparameters(Hyperparameters):
    """Those of reinforcement tuning."""

    compute_multiplier: Annotated[float | Auto, number_or_auto(10, low=1e-5)] = "auto"
    eval_interval: Annotated[int | Auto, integer_or_auto(1, _NO_LIMIT)] = "auto"
    eval_samples: Annotated[int | Auto, integer_or_auto(1, _NO_LIMIT)] = "auto"
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"


class SupervisedMethod(BaseModel):
    """Options of supervised tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hyperparameters: Annotated[Hyperparameters, _NULL_IS_ABSENT] = Hyperparameters()


class DpoMethod(BaseModel):
    """Options of preference tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hyperparameters: Annotated[DpoHyperparameters, _NULL_IS_ABSENT] = DpoHyperparameters()


class ContinuedPretrainingMethod(BaseModel):
    """Options of continued pretraining on raw text, which is ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hyperparameters: Annotated[Hyperparameters, _NULL_IS_ABSENT] = Hyperparameters()


class ReinforcementMethod(BaseModel):
    """Options of reinforcement tuning; the grader's own options are checked where graders are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grader: Annotated[dict[str, Any], AfterValidator(_check_grader)]
    hyperparameters: Annotated[ReinforcementHyperparameters, _NULL_IS_ABSENT] = ReinforcementHyperparameters()


_NAMES = ("supervised", "dpo", "continued_pretraining", "reinforcement")


class Method(BaseModel):
    """How to tune: the name of a method, and its options under that name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["supervised", "dpo", "continued_pretraining", "reinforcement"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None
    continued_pretraining: ContinuedPretrainingMethod | None = None
    reinforcement: ReinforcementMethod | None = None

    @model_validator(mode="after")
    def _has_no_other_options(self) -> Self:
        strange = [name for name in _NAMES if name != self.type and getattr(self, name) is not None]
        if strange:
            raise ValueError(f"has the type {self.type} but options of {strange[0]}; remove them")
        return self

    @property
    def hyperparameters(self) -> Hyperparameters | None:
        """Those of its options, if it has any."""
        options: SupervisedMethod | DpoMethod | ContinuedPretrainingMethod | ReinforcementMethod | None
        options = getattr(self, self.type)
        return None if options is None else options.hyperparameters
