"""Owns what a tracker is told of a job: settings, measures of steps, how it ended. Pure.

It must not know trackers or their clients: everything here is plain JSON.
"""

from __future__ import annotations

from typing import Any

from tunesmith_server.db.tables import FineTuneRow, JsonObject, StepMetricRow

_SETTINGS = ("method", "seed", "suffix", "training_file_id", "validation_file_id")


def opening(job: FineTuneRow, tracker: str) -> JsonObject:
    """Whose run it is, where the user wants it, and the settings that it is trained with."""
    target = next(each[tracker] for each in job.integrations or () if each["type"] == tracker)
    settings: dict[str, Any] = {"base_model": job.base_model_id}
    settings |= {name: getattr(job, name) for name in _SETTINGS} | (job.resolved or {})
    return {
        "tracker": tracker,
        "job_id": job.id,
        "base_model": job.base_model_id,
        "target": target,
        "settings": {name: value for name, value in settings.items() if value is not None},
    }


def point(job: FineTuneRow, row: StepMetricRow) -> JsonObject:
    """One optimizer step: its number, when it was reported (Unix seconds) and what was measured.

    The time is the stored one, so that a step that is told twice is the same both times.
    """
    data = dict(row.data)
    time = data.pop("reported_at", job.created_at)  # steps of earlier releases have none
    seconds = data.pop("seconds", None)
    if seconds and data.get("tokens") is not None:
        data["tokens_per_second"] = data["tokens"] / seconds
    del data["step"]
    return {"step": row.step, "time": time, "measures": _numbers(data)}


def ending(job: FineTuneRow, last_step: int) -> JsonObject:
    """The job's state and, of one that succeeded, its scores and its model's name."""
    evaluation = job.evaluation or {}
    forgetting = evaluation.get("forgetting") or {}
    measures = {"trained_tokens": job.trained_tokens, "model_step": evaluation.get("step")}
    measures |= {name: evaluation.get(name) for name in ("flipped_to_right", "flipped_to_wrong")}
    for model in ("base", "tuned"):
        measures |= {f"evaluation/{model}/{name}": value for name, value in evaluation.get(model, {}).items()}
        measures |= {f"forgetting/{model}/{name}": value for name, value in forgetting.get(model, {}).items()}
    return {
        "status": job.state,
        "step": last_step,
        "time": job.finished_at or job.created_at,
        "model": job.fine_tuned_model,
        "measures": _numbers(measures),
    }


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
