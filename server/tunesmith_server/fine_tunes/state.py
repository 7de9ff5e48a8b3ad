"""Owns the states of a job and which may follow which: pure data.

It must not know where states are stored; repository.transition is the only writer.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Internal states; `wire_status` gives the OpenAI word."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

_ENDINGS = frozenset({State.FAILED, State.CANCELLED})

TRANSITIONS: dict[State, frozenset[State]] = {
    # A preflight that was lost starts again from the same state; a job that is not to start by itself pauses after it.
    # An import has nothing to train: it succeeds here.
    State.VALIDATING_FILES: frozenset({State.VALIDATING_FILES, State.QUEUED, State.PAUSED, State.SUCCEEDED}) | _ENDINGS,
    State.QUEUED: frozenset({State.RUNNING, State.PAUSED}) | _ENDINGS,
    # Back to queued: the attempt was lost and another one may take over from the last checkpoint.
    State.RUNNING: frozenset({State.QUEUED, State.PAUSING, State.SUCCEEDED}) | _ENDINGS,
    State.PAUSING: frozenset({State.PAUSED, State.QUEUED, State.SUCCEEDED}) | _ENDINGS,
    State.PAUSED: frozenset({State.QUEUED}) | _ENDINGS,
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


def may_follow(current: State, following: State) -> bool:
    """Whether a job in `current` may move to `following`."""
    return following in TRANSITIONS[current]


def wire_status(state: State) -> str:
    """The word that clients see."""
    return state.value
