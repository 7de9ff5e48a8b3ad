"""Owns the wire shapes of graders and of what a run of one gives, as OpenAI's clients know them.

It must not know how anything is graded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_GRADERS = 20
"""In one multi grader."""

Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=100_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Metric = Literal[
    "cosine",
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StringCheckGrader(_Shape):
    """1 when the comparison holds, else 0."""

    type: Literal["string_check"]
    name: Name
    input: Text
    reference: Text
    operation: Literal["eq", "ne", "like", "ilike"]
    """like: the input contains the reference; ilike: in any case of letters."""


class TextSimilarityGrader(_Shape):
    """How close the input is to the reference."""

    type: Literal["text_similarity"]
    name: Name
    input: Text
    reference: Text
    evaluation_metric: Metric


class TextBlock(_Shape):
    """A part of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: Text


class GraderMessage(_Shape):
    """A message to the model that grades."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Text | TextBlock | Annotated[list[TextBlock | Text], Field(max_length=100)]
    type: Literal["message"] | None = None

    @property
    def texts(self) -> list[str]:
        """The content, part by part."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return [part.text if isinstance(part, TextBlock) else part for part in parts]


class SamplingParams(_Shape):
    """How the model that grades is sampled."""

    temperature: Finite | None = None
    top_p: Finite | None = None
    seed: int | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: Annotated[str, Field(max_length=20)] | None = None


def _check_range(bounds: list[float]) -> list[float]:
    if bounds[0] >= bounds[1]:
        raise ValueError("must be two numbers, the lower one first")
    return bounds


class ScoreModelGrader(_Shape):
    """The number that a model gives."""

    type: Literal["score_model"]
    name: Name
    model: Name
    input: Annotated[list[GraderMessage], Field(min_length=1, max_length=100)]
    range: Annotated[list[Finite], Field(min_length=2, max_length=2), AfterValidator(_check_range)] | None = None
    sampling_params: SamplingParams | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest score."""
        return (0.0, 1.0) if self.range is None else (self.range[0], self.range[1])


class PythonGrader(_Shape):
    """The user's own program; refused, since there is no sandbox."""

    type: Literal["python"]
    name: Name
    source: Annotated[str, Field(max_length=1_000_000)]
    image_tag: Annotated[str, Field(max_length=200)] | None = None


class LabelModelGrader(BaseModel):
    """A label that a model gives; refused, since it belongs to evaluations."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["label_model"]
    name: Name


SubGrader = Annotated[
    StringCheckGrader | TextSimilarityGrader | ScoreModelGrader | PythonGrader | LabelModelGrader,
    Field(discriminator="type"),
]


class MultiGrader(_Shape):
    """A formula over the rewards of others, by their keys."""

    type: Literal["multi"]
    name: Name
    graders: Annotated[dict[Name, SubGrader], Field(min_length=1, max_length=MAX_GRADERS)]
    calculate_output: Annotated[str, Field(min_length=1, max_length=10_000)]


SingleGrader = StringCheckGrader | TextSimilarityGrader | ScoreModelGrader | PythonGrader | LabelModelGrader
Grader = Annotated[SingleGrader | MultiGrader, Field(discriminator="type")]


class ValidateGrader(_Shape):
    """The body of POST /v1/fine_tuning/alpha/graders/validate."""

    grader: Grader


class RunGrader(_Shape):
    """The body of POST /v1/fine_tuning/alpha/graders/run."""

    grader: Grader
    model_sample: Annotated[str, Field(max_length=1_000_000)]
    item: dict[str, Any] = {}


class ValidatedGrader(BaseModel):
    """The grader as it was understood."""

    grader: dict[str, Any]


class GraderErrors(BaseModel):
    """What went wrong, each kind by itself."""

    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None


class GraderMetadata(BaseModel):
    """How the reward came about; `execution_time` in seconds."""

    name: str
    type: str
    errors: GraderErrors
    execution_time: float
    scores: dict[str, float]
    token_usage: int | None
    sampled_model_name: str | None


class RunResult(BaseModel):
    """The reward; 0 when an error is flagged."""

    reward: float
    metadata: GraderMetadata
    sub_rewards: dict[str, float]
    model_grader_token_usage_per_model: dict[str, int]
