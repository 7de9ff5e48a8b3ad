"""Owns the shapes of files, fine-tunes and what belongs to them.
Must not know how they travel. Words such as a status stay plain strings, so that a new one breaks nobody.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tunesmith.types.wire import Identified, WireModel

TERMINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})
"""A fine-tune in one of these statuses never changes again."""


class File(Identified):
    """An uploaded file or a result file; times are Unix seconds."""

    object: str = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str
    """`uploaded`, `processed` or `error`."""
    status_details: str | None = None
    expires_at: int | None = None
    sha256: str | None = None
    """Hex digest of the content."""


class CompletedUpload(Identified):
    """What became of a file that was sent in parts."""

    file: File


class JobError(WireModel):
    """Why a fine-tune failed."""

    code: str
    message: str
    param: str | None = None


class Hyperparameters(WireModel):
    """Numbers, or "auto" until the data has been read."""

    n_epochs: int | str | None = None
    batch_size: int | str | None = None
    learning_rate_multiplier: float | str | None = None
    beta: float | str | None = None
    """Of dpo."""


class Training(WireModel):
    """What is trained: `lora` adapters or `full` weights."""

    weights: str = "lora"
    lora_rank: int | str | None = None
    lora_alpha: float | str | None = None
    lora_targets: list[str] | None = None
    """None: every linear layer but the head."""
    use_rslora: bool | None = None


class Progress(WireModel):
    """Where a running fine-tune is."""

    phase: str | None = None
    """`starting`, `loading`, `validating`, `training`, `evaluating` or `uploading`."""
    step: int | None = None
    """Optimizer steps done."""
    total_steps: int | None = None
    remaining_seconds: float | None = None


class Score(WireModel):
    """How well a model did on the evaluated rows."""

    loss: float | None = None
    """Mean nats per labelled token; of dpo per pair."""
    token_accuracy: float | None = None
    """0 to 1."""
    exact_match: float | None = None
    """Share of the rows whose greedy answer equals the label; of supervised tuning."""
    perplexity: float | None = None
    """exp of the loss; not of dpo."""
    preference_accuracy: float | None = None
    """Of dpo: share of the rows whose preferred answer the model holds likelier than the other."""
    preference_margin: float | None = None
    """Of dpo: by how many nats it does, on average."""


class FlippedRow(WireModel):
    """A line of the evaluated file that only one of the two models answers exactly: `right` or `wrong`."""

    row: int
    before: str
    after: str


class FlippedItem(WireModel):
    """A question of general knowledge that only one of the two models answers exactly: `right` or `wrong`."""

    topic: str
    prompt: str
    before: str
    after: str


class Forgetting(WireModel):
    """Base and tuned model on the trainer's own questions of general knowledge."""

    items: int
    base: Score
    tuned: Score
    flips: list[FlippedItem] = Field(default_factory=list)


class Evaluation(WireModel):
    """Base and tuned model on rows that were not trained on."""

    step: int | None = None
    """After which the tuned model was saved: not the last one where an earlier one scored better."""
    rows: int
    held_out_from_training: bool = False
    """True if the rows were carved out of the training file, as no validation file was given."""
    base: Score
    tuned: Score
    flipped_to_right: int = 0
    flipped_to_wrong: int = 0
    flips: list[FlippedRow] = Field(default_factory=list)
    """The first hundred."""
    forgetting: Forgetting | None = None


class FineTune(Identified):
    """A fine-tune job; times are Unix seconds."""

    object: str = "fine_tuning.job"
    created_at: int
    finished_at: int | None = None
    model: str
    """The base model."""
    fine_tuned_model: str | None = None
    """The name to use in `chat.completions.create`, once the job has succeeded."""
    status: str
    """`validating_files`, `queued`, `running`, `pausing`, `paused`, `succeeded`, `failed` or `cancelled`."""
    error: JobError | None = None
    hyperparameters: Hyperparameters | None = None
    method: dict[str, Any] | None = None
    training: Training | None = None
    training_file: str
    validation_file: str | None = None
    result_files: list[str] = Field(default_factory=list)
    trained_tokens: int | None = None
    seed: int | None = None
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] | None = None
    """The experiment trackers that follow the job."""
    estimated_finish: int | None = None
    auto_start: bool = True
    queue_position: int | None = None
    """1 for the job that starts next; only in a job that waits and was retrieved by its id."""
    progress: Progress | None = None
    preflight: dict[str, Any] | None = None
    """What the validation found: `counts`, `findings`, `memory`, `seconds`, `rejects_file`."""
    evaluation: Evaluation | None = None

    @property
    def finished(self) -> bool:
        """Whether the job has come to its end, good or bad."""
        return self.status in TERMINAL_STATUSES


class EstimatedStart(WireModel):
    """Where a job would stand in the queue, had it been made now."""

    position: int
    expected_start: int | None = None
    """Unix seconds; None when nobody knows."""


class EstimatedMemory(WireModel):
    """What a run needs at its peak, and what its machine has."""

    needed_bytes: int | None = None
    available_bytes: int | None = None
    fits: bool | None = None


class EstimatedCost(WireModel):
    """What the installation charges."""

    amount: float
    currency: str


class Estimate(Identified):
    """What a fine-tune would take; numbers are None until the status is `ready`."""

    object: str = "fine_tuning.estimate"
    created_at: int
    status: str
    """`validating_files`, `ready` or `failed`."""
    error: JobError | None = None
    model: str
    rows: int | None = None
    tokens: int | None = None
    """Of one pass."""
    trained_tokens: int | None = None
    """Of all passes."""
    steps: int | None = None
    hyperparameters: Hyperparameters | None = None
    training: Training | None = None
    memory: EstimatedMemory | None = None
    seconds: float | None = None
    queue: EstimatedStart | None = None
    cost: EstimatedCost | None = None
    findings: list[dict[str, Any]] = Field(default_factory=list)
    rejects_file: str | None = None


class FineTuneEvent(Identified):
    """One line of a fine-tune's history."""

    object: str = "fine_tuning.job.event"
    created_at: int
    level: str
    """`info`, `warn` or `error`."""
    message: str
    type: str = "message"
    """`message` or `metrics`."""
    data: dict[str, Any] | None = None
    """Of metrics: `step`, `total_steps`, `train_loss`, `train_mean_token_accuracy`, `valid_loss` and more."""


class FineTuneCheckpoint(Identified):
    """A state of the model during training that can be used like the final one."""

    object: str = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    """The name to use in `chat.completions.create`."""
    step_number: int
    metrics: dict[str, float | None] = Field(default_factory=dict)
