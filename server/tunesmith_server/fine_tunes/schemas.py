"""Owns the wire shapes of jobs: OpenAI's request and object, and our additions to both.

It must not know where jobs are stored or what is allowed beyond the shape of one request.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tunesmith_server.fine_tunes.integration_shapes import Integration
from tunesmith_server.fine_tunes.method_shapes import (
    Auto,
    ContinuedPretrainingMethod,
    DpoHyperparameters,
    DpoMethod,
    Hyperparameters,
    Method,
    SupervisedMethod,
    integer_or_auto,
    number_or_auto,
)
from tunesmith_server.metadata import check_metadata

LongRows = Literal["fail", "cut", "drop"]
LoraTarget = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]

_SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_SEED = 2**31 - 1
_MAX_DEVICES = 4096
_MAX_SECONDS = 10 * 365 * 86400


def _check_suffix(suffix: str) -> str:
    if not _SUFFIX.fullmatch(suffix):
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit")
    return suffix


Suffix = Annotated[str, AfterValidator(_check_suffix)]
"""A user's word in a model's name."""


class Training(BaseModel):
    """Tunesmith's own options; those of adapters are for LoRA only, `long_rows` is about rows over the context."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Literal["lora", "full"] = "lora"
    lora_rank: Annotated[int | Auto, integer_or_auto(1, 512)] = "auto"
    lora_alpha: Annotated[float | Auto, number_or_auto(4096)] = "auto"
    lora_targets: Annotated[list[LoraTarget], Field(min_length=1, max_length=64)] | None = None
    """attention, mlp, or ends of modules' names; null: every linear layer but the head."""
    use_rslora: Annotated[bool, Field(strict=True)] | None = None
    """Scale the adapter by alpha / √rank instead of alpha / rank; null: no."""
    long_rows: LongRows = "fail"
    early_stopping_patience: Annotated[int | Auto, integer_or_auto(1, 50)] = "auto"
    """Passes that may end without a better validation loss before the run stops; auto: never."""


class SchedulingOptions(BaseModel):
    """Tunesmith's own wishes to the scheduler; both limits pause the job instead of ending it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority: Annotated[int, Field(strict=True, ge=-100, le=100)] = 0
    """Higher starts first."""
    devices: Annotated[int | Auto, integer_or_auto(1, _MAX_DEVICES)] = "auto"
    """Accelerators that a run takes, all or none; auto: as few as it fits on."""
    max_run_seconds: Annotated[int, Field(strict=True, ge=1, le=_MAX_SECONDS)] | None = None
    max_device_seconds: Annotated[int, Field(strict=True, ge=1, le=_MAX_SECONDS)] | None = None


class CreateFineTune(BaseModel):
    """The body of POST /v1/fine_tuning/jobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=512)]
    training_file: Annotated[str, Field(min_length=1, max_length=200)]
    validation_file: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=_MAX_SEED)] | None = None
    metadata: Annotated[dict[str, str], AfterValidator(check_metadata)] | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    """Deprecated by OpenAI for those of the method, which win where a number is in both."""
    training: Training = Training()
    scheduling: SchedulingOptions = SchedulingOptions()
    auto_start: Annotated[bool, Field(strict=True)] = True
    """False: the job pauses once its files are validated, and `resume` starts it."""

    @property
    def effective_hyperparameters(self) -> Hyperparameters:
        """What was asked for, each number in whichever of the two places."""
        elsewhere = self.hyperparameters or Hyperparameters()
        of_method = self.method.hyperparameters if self.method is not None else None
        if of_method is None:
            return elsewhere
        only_there = elsewhere.model_fields_set - of_method.model_fields_set
        return of_method.model_copy(update={name: getattr(elsewhere, name) for name in only_there})


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class SupervisedObject(BaseModel):
    """The method in use: supervised tuning."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedMethod


class DpoObject(BaseModel):
    """The method in use: preference tuning."""

    type: Literal["dpo"] = "dpo"
    dpo: DpoMethod


class ContinuedPretrainingObject(BaseModel):
    """The method in use: continued pretraining."""

    type: Literal["continued_pretraining"] = "continued_pretraining"
    continued_pretraining: ContinuedPretrainingMethod


MethodObject = Annotated[SupervisedObject | DpoObject | ContinuedPretrainingObject, Field(discriminator="type")]


class TrainingObject(BaseModel):
    """Tunesmith's own options in use; those of LoRA are null for full weights."""

    weights: Literal["lora", "full"]
    lora_rank: int | Auto | None
    lora_alpha: float | Auto | None
    lora_targets: list[str] | None
    use_rslora: bool | None
    long_rows: LongRows
    early_stopping_patience: int | Auto


class SchedulingObject(BaseModel):
    """The wishes to the scheduler in force; a limit that was used up is lifted by `resume`."""

    priority: int
    devices: int | Auto
    max_run_seconds: int | None
    max_device_seconds: int | None


class Preflight(BaseModel):
    """What the preflight run found in the files; a part that it did not report is null or empty."""

    counts: dict[str, Any] | None
    findings: list[Any]
    memory: dict[str, Any] | None
    seconds: float | None
    rejects_file: str | None
    """A file with the rows that were refused, cut or dropped, and why."""


class Progress(BaseModel):
    """Where the run is: phase is starting, loading, validating, training, evaluating or uploading."""

    phase: str
    step: int
    total_steps: int
    remaining_seconds: float | None


Verdict = Literal["right", "wrong"]


class Score(BaseModel):
    """loss in mean nats per labelled token, for dpo per pair; accuracies from 0 to 1. What a method lacks is null."""

    loss: float | None
    token_accuracy: float | None
    exact_match: float | None
    perplexity: float | None = None
    """exp of the loss; not of dpo."""
    preference_accuracy: float | None = None
    """Of dpo: the share of rows whose preferred answer the model holds likelier than the other."""
    preference_margin: float | None = None
    """Of dpo: by how many nats it does, on average."""


class FlippedRow(BaseModel):
    """A line of the evaluated file that only one of the two models answers exactly."""

    row: int
    before: Verdict
    after: Verdict


class FlippedItem(BaseModel):
    """A question of general knowledge that only one of the two models answers exactly."""

    topic: str
    prompt: str
    before: Verdict
    after: Verdict


class Forgetting(BaseModel):
    """Base and tuned model on the trainer's own questions of general knowledge."""

    items: int
    base: Score
    tuned: Score
    flips: list[FlippedItem]


class Evaluation(BaseModel):
    """Base and tuned model on the same rows."""

    step: int | None = None
    """After which the tuned model was saved: not the last one where an earlier one scored better."""
    rows: int
    held_out_from_training: bool
    base: Score
    tuned: Score
    flipped_to_right: int
    flipped_to_wrong: int
    flips: list[FlippedRow] = []
    """The first hundred; the counts are of all. Evaluations of earlier releases list none."""
    forgetting: Forgetting | None = None


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
    hyperparameters: DpoHyperparameters | Hyperparameters
    method: MethodObject
    training: TrainingObject
    scheduling: SchedulingObject
    auto_start: bool
    queue_position: int | None
    """1 for the job that starts next; null when it does not wait for a start, and always in lists."""
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    user_provided_suffix: str | None
    metadata: dict[str, str] | None
    integrations: list[Integration] | None
    estimated_finish: int | None
    progress: Progress | None
    preflight: Preflight | None
    evaluation: Evaluation | None


class FineTunePage(BaseModel):
    """Jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[FineTuneObject]
    has_more: bool
