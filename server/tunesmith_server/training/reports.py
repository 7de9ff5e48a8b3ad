"""Owns how messages of a run become what is stored: metrics, progress, resolved numbers, scores. Pure.

It must not know the database or who may write.
"""

from __future__ import annotations

from typing import Any

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.fine_tunes.events import NewEvent, finite, reported
from tunesmith_server.structs import plain_object
from tunesmith_server.training.outcomes import Cause, Ending

OPENAI_METRICS = (
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)
"""The measures that clients know, next to `step`."""

_SCORES = ("token_accuracy", "exact_match", "perplexity", "preference_accuracy", "preference_margin")
"""Each of them has a meaning for some methods only."""
_MAX_FLIPS = 100

_CAUSES = {
    pb.FAILURE_CAUSE_USER: Cause.USER,
    pb.FAILURE_CAUSE_TRAINER: Cause.TRAINER,
    pb.FAILURE_CAUSE_INFRASTRUCTURE: Cause.INFRASTRUCTURE,
    pb.FAILURE_CAUSE_OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
}


def step_metrics(message: pb.StepMetrics, now: int) -> dict[str, Any]:
    """The measures of one step; None where a measure was not taken or is not a number."""
    return public_metrics(message) | {
        "learning_rate": finite(message.learning_rate),
        "tokens": message.tokens,
        "seconds": finite(message.seconds),
        "reported_at": now,
    }


def public_metrics(message: pb.StepMetrics) -> dict[str, Any]:
    """The part of a step's measures that clients know."""
    metrics: dict[str, Any] = {"step": message.step}
    for name in OPENAI_METRICS:
        known = not name.startswith(("valid", "full")) or message.HasField(name)  # type: ignore[arg-type] # one of its names
        metrics[name] = finite(getattr(message, name)) if known else None
    return metrics


def progress(message: pb.HeartbeatRequest, now: float) -> dict[str, Any]:
    """Where the run says that it is; `estimated_finish` in Unix seconds."""
    remaining = finite(message.remaining_seconds) if message.HasField("remaining_seconds") else None
    if remaining is not None:
        remaining = min(max(remaining, 0.0), 10.0 * 365 * 86400)
    return {
        "phase": message.phase[:40],
        "step": message.step,
        "total_steps": message.total_steps,
        "remaining_seconds": remaining,
        "estimated_finish": None if remaining is None else int(now + remaining),
    }


def starting(total_steps: int) -> dict[str, Any]:
    """Progress of a run that has fetched its spec and said nothing more."""
    return {
        "phase": "starting",
        "step": 0,
        "total_steps": total_steps,
        "remaining_seconds": None,
        "estimated_finish": None,
    }


def run_event(message: pb.RunEvent) -> NewEvent:
    """A line that the run wants in the job's history."""
    data = plain_object(message.data) if message.HasField("data") else None
    return reported(message.level, message.message, data)


def resolved(message: pb.CompletePreflightRequest, requested: dict[str, Any]) -> dict[str, Any]:
    """Every number of the job; raises InvalidRequestError when the run left one out."""
    numbers: dict[str, Any] = {
        field.name: list(value) if field.is_repeated else value for field, value in message.hyperparameters.ListFields()
    }
    needed = {"n_epochs", "batch_size", "learning_rate_multiplier", "context_length"}
    if requested["weights"] == "lora":
        needed |= {"lora_rank", "lora_alpha"}
    missing = sorted(name for name in needed if not numbers.get(name, 0) > 0)
    if missing or message.total_steps < 1 or finite(message.learning_rate) is None:
        what = ", ".join(missing) or "total_steps or learning_rate"
        raise InvalidRequestError("incomplete_preflight", f"The preflight run must resolve {what}.")
    return {
        "weights": requested["weights"],
        **numbers,
        "learning_rate": message.learning_rate,
        "total_steps": message.total_steps,
        "rows": message.rows,
        "tokens": message.tokens,
        "labelled_tokens": message.labelled_tokens,
    }


def evaluation(message: pb.Evaluation, step: int) -> dict[str, Any]:
    """Scores of base and tuned model, which is that of `step`."""
    return {
        "step": step,
        "rows": message.rows,
        "held_out_from_training": message.held_out_from_training,
        "base": _score(message.base),
        "tuned": _score(message.tuned),
        "flipped_to_right": message.flipped_to_right,
        "flipped_to_wrong": message.flipped_to_wrong,
        "flips": [
            {"row": flip.row, "before": _verdict(not flip.right), "after": _verdict(flip.right)}
            for flip in message.flips[:_MAX_FLIPS]
        ],
        "forgetting": _forgetting(message.forgetting) if message.HasField("forgetting") else None,
    }


def endings(message: pb.FailRunRequest) -> list[Ending]:
    """What a run says about its own failure; a run that gives no reason has a defect."""
    cause = _CAUSES.get(message.cause, Cause.TRAINER)
    return [_ending(cause, failure) for failure in message.failures[:1000]] or [_ending(cause, pb.Failure())]


def _ending(cause: Cause, failure: pb.Failure) -> Ending:
    code = _clean(failure.code, 100) or "trainer_defect"
    return Ending(
        cause,
        code,
        _clean(failure.message, 4000) or "The run failed without saying why.",
        _clean(failure.param, 100) if failure.HasField("param") else None,
        failure.row if failure.HasField("row") else None,
    )


def _forgetting(message: pb.Forgetting) -> dict[str, Any]:
    return {
        "items": message.items,
        "base": _score(message.base),
        "tuned": _score(message.tuned),
        "flips": [
            {
                "topic": _clean(flip.topic, 100),
                "prompt": _clean(flip.prompt, 400),
                "before": _verdict(not flip.right),
                "after": _verdict(flip.right),
            }
            for flip in message.flips[:_MAX_FLIPS]
        ],
    }


def _verdict(right: bool) -> str:
    return "right" if right else "wrong"


def _score(message: pb.Score) -> dict[str, Any]:
    measured = {field.name: finite(value) for field, value in message.ListFields()}
    return {"loss": finite(message.loss), **{name: measured.get(name) for name in _SCORES}}


def _clean(text: str, length: int) -> str:
    return text.replace("\x00", "")[:length]
