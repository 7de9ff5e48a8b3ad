"""Owns what is to be done about an attempt, given what the database and the executor say of it. Pure.

It must not know how either of them is asked. A run counts as lost only on two witnesses: its lease has expired, and the
executor says that it ended, or has not been able to say anything for long.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith_server.executors.base import Observation, RunState
from tunesmith_server.training.outcomes import LOST, YIELDED, Ending, chosen_exit

STRAY_GRACE_SECONDS = 30.0
"""How long a run that has nothing to do any more may take to end by itself."""
YIELD_GRACE_SECONDS = 600.0
"""How long a run that pauses or makes room may take to save; its last checkpoint has to do after that."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is known of a live attempt; times in Unix seconds."""

    now: float
    observation: Observation
    owns_job: bool
    cancel_requested: bool
    asked_to_yield: bool
    """Whether it shall save and end: its job pauses, or makes room for another."""
    heard_from: bool
    """Whether the run of this attempt has ever called."""
    lease_expires_at: float
    asked_to_end_since: float
    """Since when it has been seen without a job to work on, or asked to yield; `now` at first sight."""
    unreachable_since: float | None
    unreachable_limit: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do; `silent_seconds` is positive when a run that should call does not."""

    silent_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class LaunchAgain:
    """The claim was made, but nothing was ever started."""


@dataclass(frozen=True, slots=True)
class StopRun:
    """The run should have ended by now."""


@dataclass(frozen=True, slots=True)
class EndAttempt:
    """The run is over. `ending` settles the job that the attempt still owns; None: it owns none."""

    ending: Ending | None
    cause: str


Verdict = Wait | LaunchAgain | StopRun | EndAttempt


def judge(facts: Facts) -> Verdict:
    """What to do now."""
    state = facts.observation.state
    if state in (RunState.RUNNING, RunState.PENDING):
        return _about_running(facts)
    if state is RunState.UNREACHABLE:
        return _about_unreachable(facts)
    return _about_ended(facts)


def _about_running(facts: Facts) -> Verdict:
    asked_for = facts.now - facts.asked_to_end_since
    if not facts.owns_job or facts.cancel_requested:
        return StopRun() if asked_for > STRAY_GRACE_SECONDS else Wait()
    if facts.asked_to_yield and asked_for > YIELD_GRACE_SECONDS:
        return StopRun()
    if facts.observation.state is RunState.PENDING:
        return Wait()  # nothing runs yet that could call
    silent = facts.now - facts.lease_expires_at
    return StopRun() if silent > facts.unreachable_limit else Wait(max(silent, 0.0))


def _about_unreachable(facts: Facts) -> Verdict:
    since = facts.unreachable_since if facts.unreachable_since is not None else facts.now
    if facts.now - since <= facts.unreachable_limit or (facts.owns_job and not _lease_expired(facts)):
        return Wait()
    return EndAttempt(LOST if facts.owns_job else None, "unreachable")


def _about_ended(facts: Facts) -> Verdict:
    code = facts.observation.exit_code
    chosen = chosen_exit(code) if code is not None else None
    cause = "exited" if facts.observation.state is RunState.EXITED else "gone"
    if not facts.owns_job:
        return EndAttempt(None, cause)
    if chosen is not None:
        return EndAttempt(chosen, cause)
    if facts.cancel_requested:
        return EndAttempt(LOST, cause)
    if facts.asked_to_yield and facts.observation.state is RunState.EXITED:
        return EndAttempt(YIELDED, cause)  # stopped by order: no loss, and nobody to wait for
    if not _lease_expired(facts):
        return LaunchAgain() if cause == "gone" and not facts.heard_from else Wait()
    return EndAttempt(LOST, cause)


def _lease_expired(facts: Facts) -> bool:
    return facts.now >= facts.lease_expires_at
