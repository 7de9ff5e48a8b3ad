"""Owns the wire shapes of jobs: OpenAI's request and objects, and our additions `training`, `progress`, `evaluation`.

It must not know where jobs are stored or what is allowed beyond the shape of one request.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

Auto = Literal["auto"]

_SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_SEED = 2**31 - 1


def _number_or_auto(value: object, low: float, high: float, *, whole: bool, wanted: str) -> Any:
    if value is None or value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"must be {wanted}, or the string auto")
    if not low <= value <= high or (whole and value != int(value)):
        raise ValueError(f"must be {wanted}, or the string auto")
    return int(value) if whole else float(value)


def _integer(low: int, high: int) -> PlainValidator:
    def check(value: object) -> Any:
        return _number_or_auto(value, low, high, whole=True, wanted=f"an integer from {low} to {high}")

    return PlainValidator(check, json_schema_input_type=int | Auto)


def _positive(high: float) -> PlainValidator:
    def check(value: object) -> Any:
        # The smallest number that still moves a weight; below it lies a typing error.
        return _number_or_auto(value, 1e-9, high, whole=False, wanted=f"a number greater than 0 and up to {high:g}")

    return PlainValidator(check, json_schema_input_type=float | Auto)


def _check_suffix(suffix: str) -> str:
    if not _SUFFIX.fullmatch(suffix):
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit")
    return suffix


def check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Returns the metadata if it keeps OpenAI's limits; raises ValueError with a sentence."""
    if len(metadata) > 16:
        raise ValueError("may have at most 16 pairs")
    for key, value in metadata.items():
        if not 1 <= len(key) <= 64 or len(value) > 512:
            raise ValueError("keys must have 1 to 64 characters, values at most 512")
        if "\x00" in key + value:
            raise ValueError("may not hold the character NUL")
    return metadata


class Hyperparameters(BaseModel):
    """Numbers, or "auto": then the preflight run decides from the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_epochs: Annotated[int | Auto, _integer(1, 50)] = "auto"
    batch_size: Annotated[int | Auto, _integer(1, 256)] = "auto"
    learning_rate_multiplier: Annotated[float | Auto, _positive(1000)] = "auto"


class Training(BaseModel):
    """Tunesmith's own options; alpha and rank are of use for LoRA only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Literal["lora", "full"] = "lora"
    lora_rank: Annotated[int | Auto, _integer(1, 512)] = "auto"
    lora_alpha: Annotated[float | Auto, _positive(4096)] = "auto"


class SupervisedMethod(BaseModel):
    """Options of supervised tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(BaseModel):
    """How to tune; options of methods other than supervised are not read, since the service refuses those methods."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: str
    supervised: SupervisedMethod | None = None


class CreateFineTune(BaseModel):
    """The body of POST /v1/fine_tuning/jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=200)]
    training_file: Annotated[str, Field(min_length=1, max_length=200)]
    validation_file: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    suffix: Annotated[str, AfterValidator(_check_suffix)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=_MAX_SEED)] | None = None
    metadata: Annotated[dict[str, str], AfterValidator(check_metadata)] | None = None
    integrations: list[Any] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    """Deprecated by OpenAI for method.supervised.hyperparameters, which wins where both are sent."""
    training: Training = Training()

    @property
    def effective_hyperparameters(self) -> Hyperparameters:
        """What was asked for, in whichever of the two places."""
        if self.method is not None and self.method.supervised is not None:
            return self.method.supervised.hyperparameters
        return self.hyperparameters or Hyperparameters()


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class MethodObject(BaseModel):
    """The method in use."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedMethod


class TrainingObject(BaseModel):
    """Tunesmith's own options in use; rank and alpha are null for full weights."""

    weights: Literal["lora", "full"]
    lora_rank: int | Auto | None
    lora_alpha: float | Auto | None


class Progress(BaseModel):
    """Where the run is: phase is starting, loading, validating, training, evaluating or uploading."""

    phase: str
    step: int
    total_steps: int
    remaining_seconds: float | None


class Score(BaseModel):
    """loss in mean nats per labelled token; accuracies from 0 to 1."""

    loss: float | None
    token_accuracy: float | None
    exact_match: float | None


class Evaluation(BaseModel):
    """Base and tuned model on the same rows."""

    rows: int
    held_out_from_training: bool
    base: Score
    tuned: Score
    flipped_to_right: int
    flipped_to_wrong: int


class FineTuneObject(BaseModel):
    """OpenAI's `fine_tuning.job`; every key is always present."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: str
    error: JobError | None
    hyperparameters: Hyperparameters
    method: MethodObject
    training: TrainingObject
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    user_provided_suffix: str | None
    metadata: dict[str, str] | None
    integrations: None = None
    estimated_finish: int | None
    progress: Progress | None
    evaluation: Evaluation | None


class EventObject(BaseModel):
    """OpenAI's `fine_tuning.job.event`."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None


class CheckpointObject(BaseModel):
    """OpenAI's `fine_tuning.job.checkpoint`."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, float]


class FineTunePage(BaseModel):
    """Jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[FineTuneObject]
    has_more: bool


class EventPage(BaseModel):
    """A job's history, newest first."""

    object: Literal["list"] = "list"
    data: list[EventObject]
    has_more: bool


class CheckpointPage(BaseModel):
    """A job's checkpoints, newest first."""

    object: Literal["list"] = "list"
    data: list[CheckpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
