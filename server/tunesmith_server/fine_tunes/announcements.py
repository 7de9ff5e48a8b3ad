"""Owns which changes of a job the outside hears of, and under which name: pure data.

It must not know who listens; webhooks/ delivers what repository.py writes to the outbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith_server.fine_tunes.state import State

EVENT_TYPES: dict[State, str] = {
    State.SUCCEEDED: "fine_tuning.job.succeeded",
    State.FAILED: "fine_tuning.job.failed",
    State.CANCELLED: "fine_tuning.job.cancelled",
    # Our addition: OpenAI has no word for it.
    State.PAUSED: "fine_tuning.job.paused",
}


def announcement(changes: Mapping[str, Any], *, cancel_requested: bool) -> str | None:
    """The event type of a change, or None; `cancel_requested` is the job's after the change.

    A job is cancelled for its user from the moment in which that was asked for. Its state follows when its run has
    ended, and is no news any more.
    """
    if changes.get("cancel_requested"):
        return EVENT_TYPES[State.CANCELLED]
    if cancel_requested or "state" not in changes:
        return None
    return EVENT_TYPES.get(State(changes["state"]))
