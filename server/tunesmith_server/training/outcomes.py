"""Owns what the end of a run means for its job: causes, exit codes, retries and back-off. Pure.

It must not know where jobs are stored or how runs are started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

_INFRASTRUCTURE_RETRIES = 5
_TRAINER_RETRIES = 1
_OUT_OF_MEMORY_RETRIES = 12  # a run ends its job itself when nothing smaller is left; no ladder is this long
_FIRST_DELAY_SECONDS = 5


class Cause(StrEnum):
    """Who or what ended a run before its work was done; retries are counted by cause."""

    USER = "user"
    """Data or spec: it would fail again."""
    TRAINER = "trainer"
    """A defect of ours."""
    INFRASTRUCTURE = "infrastructure"
    """The machine, the network, a kill."""
    OUT_OF_MEMORY = "out_of_memory"
    """Too little memory: the next run is told how often, and computes in a way that needs less."""
    DAMAGED_CHECKPOINT = "damaged_checkpoint"
    """The checkpoint to resume from: the next run gets an older one, so this ends by itself."""
    PREEMPTION = "preemption"
    """The run was asked to make room."""


_NOT_ITS_FAULT = frozenset({Cause.INFRASTRUCTURE, Cause.DAMAGED_CHECKPOINT, Cause.PREEMPTION})


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, in the words that become the job's error if it is not tried again."""

    cause: Cause
    code: str
    message: str
    param: str | None = None
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The job waits for another attempt."""

    delay_seconds: int
    retries: dict[str, int]
    """Retries used so far, this one included, by cause."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The job is paused, as its user or its limit has asked; what was saved last is what it goes on from."""

    retries: dict[str, int]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job has failed for good."""

    code: str
    message: str


LOST = Ending(Cause.INFRASTRUCTURE, "run_lost", "The run was lost: its process or its machine died.")

# Exit codes that a run chooses itself (BSD sysexits); the trainer's command line documents the same table.
_EXIT_CODES: Mapping[int, Ending] = {
    0: Ending(Cause.TRAINER, "incomplete_run", "The run ended without delivering a result."),
    64: Ending(Cause.USER, "invalid_spec", "The trainer cannot do what the job asks for; check its parameters."),
    65: Ending(
        Cause.USER, "invalid_training_data", "The data cannot be trained on; check the rows of the training file."
    ),
    66: Ending(Cause.USER, "unsupported_model", "This base model cannot be tuned; choose another one."),
    70: Ending(Cause.TRAINER, "trainer_defect", "The trainer failed by a defect of its own; see the run's log."),
    71: Ending(
        Cause.OUT_OF_MEMORY,
        "out_of_memory",
        "The run needs more memory than its machine has. Use shorter rows, training.weights lora or another machine.",
    ),
    75: Ending(Cause.PREEMPTION, "preempted", "The run was stopped before it was done."),
}
YIELDED = _EXIT_CODES[75]
_INCOMPLETE = _EXIT_CODES[0]


def chosen_exit(code: int) -> Ending | None:
    """What an exit code says that the run itself chose; None for signals and unknown codes: then the run is lost."""
    return _EXIT_CODES.get(code)


def decide(ending: Ending, retries: Mapping[str, int], *, made_progress: bool = False) -> Retry | GiveUp:
    """Whether the job is tried again after `ending`, given the retries used so far by cause.

    A run that saved something before it was lost has not failed in vain: its job's losses count from one again.
    """
    used = retries.get(ending.cause, 0)
    if ending.cause is Cause.USER or (ending.cause is Cause.TRAINER and used >= _TRAINER_RETRIES):
        return GiveUp(ending.code, ending.message)
    if ending.cause is Cause.INFRASTRUCTURE and made_progress:
        used = 0
    if ending.cause is Cause.INFRASTRUCTURE and used >= _INFRASTRUCTURE_RETRIES:
        message = f"The job was tried {used + 1} times and lost each time, last because: {ending.message}"
        return GiveUp("retries_exhausted", message)
    if ending.cause is Cause.OUT_OF_MEMORY and used >= _OUT_OF_MEMORY_RETRIES:
        return GiveUp(ending.code, ending.message)
    doublings = used if ending.cause is Cause.INFRASTRUCTURE else 0
    return Retry(_FIRST_DELAY_SECONDS * 2**doublings, {**retries, ending.cause.value: used + 1})


def decide_pausing(ending: Ending, retries: Mapping[str, int]) -> Rest | GiveUp:
    """The same for a job that is to be paused: it rests however its run ended, unless it would fail again."""
    if ending.cause in _NOT_ITS_FAULT or ending == _INCOMPLETE:
        return Rest(dict(retries))
    verdict = decide(ending, retries)
    return verdict if isinstance(verdict, GiveUp) else Rest(verdict.retries)


def decide_preempted(ending: Ending, retries: Mapping[str, int]) -> Retry | GiveUp:
    """The same for a run that was told to make room: its end is no fault, whether it saved in time or not."""
    if ending.cause not in _NOT_ITS_FAULT:
        return decide(ending, retries)
    counted = retries.get(Cause.PREEMPTION, 0) + 1
    return Retry(0, {**retries, Cause.PREEMPTION.value: counted})
