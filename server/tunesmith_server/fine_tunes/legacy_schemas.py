"""Owns the wire shapes of OpenAI's first fine-tuning API, /v1/fine-tunes, and what its requests mean today.

It must not know rows.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tunesmith_server.files.schemas import FileObject
from tunesmith_server.fine_tunes.method_shapes import Auto, Hyperparameters, integer_or_auto, number_or_auto
from tunesmith_server.fine_tunes.schemas import CreateFineTune

DEFAULT_MODEL = "curie"
"""What the old API took when no model was named."""

_NOT_IN_A_SUFFIX = re.compile(r"[^A-Za-z0-9._-]+")
# What old clients send without being asked to.
_IGNORED_PROMPT_WEIGHTS = (0.0, 0.01)


def _as_word(suffix: object) -> object:
    """The old API took any text as a suffix and made a word of it."""
    return _NOT_IN_A_SUFFIX.sub("-", suffix).strip("-._") if isinstance(suffix, str) else suffix


def _check_prompt_weight(weight: float | None) -> float | None:
    if weight is not None and weight not in _IGNORED_PROMPT_WEIGHTS:
        raise ValueError("prompts are not trained on here; leave it out")
    return weight


def _refuse(value: object) -> object:
    if value:
        raise ValueError("classification metrics are not offered here; leave it out")
    return value


_NotOffered = Annotated[bool | int | str | list[float] | None, BeforeValidator(_refuse)]


class LegacyHyperparameters(BaseModel):
    """A late addition to the old API."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_epochs: Annotated[int | Auto, integer_or_auto(1, 50)] = "auto"


class CreateLegacyFineTune(BaseModel):
    """The body of POST /v1/fine-tunes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    training_file: Annotated[str, Field(min_length=1, max_length=200)]
    validation_file: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    n_epochs: Annotated[int | Auto, integer_or_auto(1, 50)] = "auto"
    batch_size: Annotated[int | Auto, integer_or_auto(1, 256)] = "auto"
    learning_rate_multiplier: Annotated[float | Auto, number_or_auto(1000)] = "auto"
    prompt_loss_weight: Annotated[float | None, AfterValidator(_check_prompt_weight)] = None
    compute_classification_metrics: _NotOffered = None
    classification_n_classes: _NotOffered = None
    classification_positive_class: _NotOffered = None
    classification_betas: _NotOffered = None
    suffix: Annotated[str, BeforeValidator(_as_word), Field(min_length=1, max_length=64)] | None = None
    hyperparameters: LegacyHyperparameters = LegacyHyperparameters()

    def modern(self) -> CreateFineTune:
        """The same wish in today's shape."""
        n_epochs = self.hyperparameters.n_epochs if self.n_epochs == "auto" else self.n_epochs
        return CreateFineTune(
            model=self.model or DEFAULT_MODEL,
            training_file=self.training_file,
            validation_file=self.validation_file,
            suffix=self.suffix,
            hyperparameters=Hyperparameters(
                n_epochs=n_epochs,
                batch_size=self.batch_size,
                learning_rate_multiplier=self.learning_rate_multiplier,
            ),
        )


class LegacyHyperparams(BaseModel):
    """Plain numbers; before the files are validated, those that were left open are only what is usual."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    prompt_loss_weight: float = 0.0


class LegacyEvent(BaseModel):
    """One line of the history; it has no id."""

    object: Literal["fine-tune-event"] = "fine-tune-event"
    created_at: int
    level: str
    message: str


class ListedLegacyFineTune(BaseModel):
    """OpenAI's `fine-tune`, as lists show it."""

    id: str
    object: Literal["fine-tune"] = "fine-tune"
    created_at: int
    updated_at: int
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["created", "running", "succeeded", "failed", "cancelled"]
    hyperparams: LegacyHyperparams
    training_files: list[FileObject]
    validation_files: list[FileObject]
    result_files: list[FileObject]


class LegacyFineTune(ListedLegacyFineTune):
    """One `fine-tune` with its history, oldest first."""

    events: list[LegacyEvent]


class LegacyFineTuneList(BaseModel):
    """Newest first; the old API has no pages."""

    object: Literal["list"] = "list"
    data: list[ListedLegacyFineTune]


class LegacyEventList(BaseModel):
    """A history, oldest first."""

    object: Literal["list"] = "list"
    data: list[LegacyEvent]
