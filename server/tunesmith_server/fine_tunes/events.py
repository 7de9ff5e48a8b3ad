"""Owns the texts of a job's history, in OpenAI's words and order where OpenAI has a word.

It must not know where events are stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["info", "warn", "error"]

_MESSAGE_LENGTH = 4000


@dataclass(frozen=True, slots=True)
class NewEvent:
    """One line of a job's history that is to be written."""

    message: str
    level: Level = "info"
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] | None = None


def created(job_id: str) -> NewEvent:
    """First line of every job."""
    return NewEvent(f"Created fine-tuning job: {job_id}")


def first_lines(job_id: str, waits_for: str | None) -> list[NewEvent]:
    """How a job's history begins; `waits_for` is its base model where that is still being imported."""
    lines = [created(job_id)]
    if waits_for is not None:
        lines.append(NewEvent(f"Waiting for the base model {waits_for} to be imported"))
    return lines


def validating(training_file_id: str, validation_file_id: str | None) -> NewEvent:
    """A preflight run was claimed."""
    also = f" and validation file: {validation_file_id}" if validation_file_id else ""
    return NewEvent(f"Validating training file: {training_file_id}{also}")


def resolved(settings: Sequence[Mapping[str, str]]) -> NewEvent:
    """What every "auto" became; `settings` holds name, value and reason of each."""
    text = "; ".join(f"{setting['name']} = {setting['value']} ({setting['reason']})" for setting in settings)
    return NewEvent(_cut(f"Automatic settings: {text}"), data={"resolved": [dict(setting) for setting in settings]})


def validated() -> NewEvent:
    """The preflight run found the files good."""
    return NewEvent("Files validated, moving job to queued state")


def validated_and_waiting(job_id: str) -> NewEvent:
    """The preflight run found the files good, and the job is not to start by itself."""
    return NewEvent(f"Files validated, the job is paused: POST /v1/fine_tuning/jobs/{job_id}/resume starts it")


def estimated() -> NewEvent:
    """The preflight run of an estimate found the files good."""
    return NewEvent("Files validated, the estimate is complete")


def started(*, again: bool) -> NewEvent:
    """A training run was claimed; `again`: after an earlier one was lost."""
    return NewEvent("Fine-tuning job started again" if again else "Fine-tuning job started")


def step(metrics: Mapping[str, Any], total_steps: int) -> NewEvent:
    """One optimizer step; `metrics` in OpenAI's names, absent or None where not measured."""
    names = (
        ("training loss", "train_loss"),
        ("validation loss", "valid_loss"),
        ("full validation loss", "full_valid_loss"),
    )
    losses = [f"{word}={metrics[name]:.2f}" for word, name in names if metrics.get(name) is not None]
    message = f"Step {metrics['step']}/{total_steps}: {', '.join(losses)}"
    return NewEvent(message, type="metrics", data={**metrics, "total_steps": total_steps})


def checkpoint_created(step_number: int, model_name: str) -> NewEvent:
    """A checkpoint can be used as a model."""
    data = {"step": step_number, "fine_tuned_model_checkpoint": model_name}
    return NewEvent(f"Checkpoint created at step {step_number}", data=data)


def model_created(model_name: str) -> NewEvent:
    """The final model has its name."""
    return NewEvent(f"New fine-tuned model created: {model_name}")


def completed() -> NewEvent:
    """Last line of a job that succeeded."""
    return NewEvent("The job has successfully completed")


def cancelled() -> NewEvent:
    """The user gave the job up."""
    return NewEvent("Fine-tuning job cancelled")


def pausing() -> NewEvent:
    """The run was told to save its work and end."""
    return NewEvent("Pausing the fine-tuning job: its run saves a checkpoint and ends")


def paused() -> NewEvent:
    """A job that has no run waits for `resume`."""
    return NewEvent("Fine-tuning job paused")


def pausing_after_validation() -> NewEvent:
    """The job will wait for `resume` once its files are validated."""
    return NewEvent("The job will pause once its files are validated")


def starting_after_validation() -> NewEvent:
    """The job will go on by itself once its files are validated."""
    return NewEvent("The job will be queued once its files are validated")


def resumed() -> NewEvent:
    """The job waits for a run again."""
    return NewEvent("Fine-tuning job resumed, moving job to queued state")


def cancelled_run_ended() -> NewEvent:
    """The run of a job that was cancelled before has let go of its machine."""
    return NewEvent("The run of the cancelled job has ended")


def failure(code: str, message: str, param: str | None, row: int | None = None) -> NewEvent:
    """One thing that is wrong; the machine-readable part has OpenAI's names."""
    data: dict[str, Any] = {"error_code": code, "error_param": param}
    if row is not None:
        data["error_row"] = row
    return NewEvent(_cut(message), level="error", data=data)


def retrying(reason: str, delay_seconds: int) -> NewEvent:
    """The attempt ended before its work was done, and another one follows."""
    return NewEvent(f"{_cut(reason)} Trying again in {delay_seconds} seconds.", level="warn")


def stepped_back(damaged_step: int, older_step: int | None) -> NewEvent:
    """No run can resume from the job's newest checkpoint; `older_step` is that of the one it has to go on from."""
    onward = "from the start" if older_step is None else f"from the checkpoint of step {older_step}"
    message = f"The checkpoint of step {damaged_step} is damaged: the job goes on {onward}."
    return NewEvent(message, level="warn", data={"step": damaged_step, "resumes_from_step": older_step})


def silent(seconds: int) -> NewEvent:
    """The executor says that the run runs, but the run itself says nothing."""
    return NewEvent(f"The run has not been heard from for {seconds} seconds; waiting for it.", level="warn")


def run_paused() -> NewEvent:
    """The run of a job that was to be paused has ended."""
    return NewEvent("Fine-tuning job paused; once resumed, it goes on from its last checkpoint")


def limit_reached(name: str, limit_seconds: int, used_seconds: float) -> NewEvent:
    """The job has used up a limit that its user set, and is paused for it."""
    message = (
        f"The job has used its {name} of {limit_seconds}: its work is saved and it pauses. "
        "Resume it to grant it as much once more."
    )
    return NewEvent(message, level="warn", data={"limit": name, "seconds": limit_seconds, "used": int(used_seconds)})


def asked_to_make_room() -> NewEvent:
    """The scheduler wants the run's devices for a job of higher priority."""
    return NewEvent("A job of higher priority needs the devices: the run saves a checkpoint and ends", level="warn")


def made_room() -> NewEvent:
    """The run has ended for a job of higher priority."""
    return NewEvent(
        "The run has made room for a job of higher priority; the job waits to go on from its last checkpoint"
    )


def tracked(tracker: str, label: str, run_id: str, url: str | None) -> NewEvent:
    """An experiment tracker has a run for the job; `url` is where people see it, if there is such a place."""
    where = f"at {url}" if url else f"as its run {run_id}"
    return NewEvent(f"{label} follows this job {where}", data={"tracker": tracker, "run_id": run_id, "url": url})


def tracker_silent(tracker: str, label: str) -> NewEvent:
    """An experiment tracker cannot be reached or refuses the run."""
    message = f"{label} does not take this job's metrics now. Training goes on, and they follow once it does."
    return NewEvent(message, level="warn", data={"tracker": tracker})


def reported(level: str, message: str, data: dict[str, Any] | None) -> NewEvent:
    """A line that a run sent."""
    known: Level = "error" if level == "error" else "warn" if level == "warn" else "info"
    return NewEvent(_cut(message.replace("\x00", "")), level=known, data=data)


def finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def _cut(text: str) -> str:
    return text if len(text) <= _MESSAGE_LENGTH else text[: _MESSAGE_LENGTH - 1] + "…"
