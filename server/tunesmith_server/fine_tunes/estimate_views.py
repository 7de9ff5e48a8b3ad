"""Owns how the row of an estimate becomes what users see. Pure.

It must not know how the numbers were found; what the preflight did not report is null.
"""

from __future__ import annotations

from typing import Any, Literal

from tunesmith_server.config import Settings
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.fine_tunes import views
from tunesmith_server.fine_tunes.estimate_schemas import (
    EstimatedCost,
    EstimatedMemory,
    EstimatedStart,
    EstimateObject,
    ResolvedSetting,
)
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.scheduling.outlook import Place

_MILLION = 1_000_000


def is_ready(row: FineTuneRow) -> bool:
    """Whether the preflight has ended well."""
    return row.state == State.PAUSED


def estimate(row: FineTuneRow, place: Place | None, settings: Settings, now: float) -> EstimateObject:
    """The estimate as it is at `now` (Unix seconds); `place` is where the job would stand in the queue."""
    numbers: dict[str, Any] = row.resolved or {}
    report: dict[str, Any] = row.report or {}
    trained_tokens = numbers["tokens"] * numbers["n_epochs"] if "tokens" in numbers else None
    return EstimateObject(
        id=row.id,
        created_at=row.created_at,
        status=_status(row),
        error=views.error(row),
        model=views.model_name(row),
        rows=numbers.get("rows"),
        tokens=numbers.get("tokens"),
        trained_tokens=trained_tokens,
        steps=numbers.get("total_steps"),
        hyperparameters=views.hyperparameters_of(row),
        training=views.training_of(row),
        resolved=[ResolvedSetting(**each) for each in report.get("resolved") or ()],
        memory=_memory(report.get("memory")),
        seconds=report.get("seconds"),
        queue=_start(place, now),
        cost=_cost(trained_tokens, settings),
        findings=report.get("findings") or [],
        rejects_file=row.rejects_file_id,
    )


def _status(row: FineTuneRow) -> Literal["validating_files", "ready", "failed"]:
    if row.state == State.VALIDATING_FILES:
        return "validating_files"
    return "ready" if is_ready(row) else "failed"


def _memory(memory: dict[str, Any] | None) -> EstimatedMemory | None:
    if not memory:
        return None
    return EstimatedMemory(**{name: memory.get(name) for name in EstimatedMemory.model_fields})


def _start(place: Place | None, now: float) -> EstimatedStart | None:
    if place is None:
        return None
    wait = place.starts_in_seconds
    return EstimatedStart(position=place.position, expected_start=None if wait is None else int(now + wait))


def _cost(trained_tokens: int | None, settings: Settings) -> EstimatedCost | None:
    price = settings.price_per_million_tokens
    if price is None or trained_tokens is None:
        return None
    return EstimatedCost(amount=round(trained_tokens / _MILLION * price, 6), currency=settings.price_currency)
