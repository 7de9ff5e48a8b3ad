"""Owns the ways a run can end: exit codes, and failures in words that a user can act on.
Must not know how failures travel or what a model is."""

import errno
from dataclasses import dataclass
from typing import ClassVar

EXIT_DONE = 0
EXIT_BAD_SPEC = 64
EXIT_BAD_DATA = 65
EXIT_UNSUPPORTED_MODEL = 66
EXIT_INFRASTRUCTURE = 69
EXIT_DEFECT = 70
EXIT_OUT_OF_MEMORY = 71
EXIT_YIELDED = 75

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = (
    "can't allocate memory",
    "bad_alloc",
    "Cannot allocate memory",
    # Outside of what torch allocates itself: contexts, pinned memory, libraries' workspaces.
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Failed to CUDA calloc",
    "failure 2 'out of memory'",  # NCCL's
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `row` is the 1-based line of the file that `param` names."""

    code: str
    message: str
    param: str | None = None
    row: int | None = None


class RunFailed(Exception):
    """A run that cannot go on. `problems` is never empty; the first is the headline."""

    exit_code: ClassVar[int] = EXIT_DEFECT

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)  # all of them, so that a copy in another process is the same
        self.problems = problems

    def __str__(self) -> str:
        return self.problems[0].message


class BadSpec(RunFailed):
    """The job asks for something that does not exist or cannot be combined."""

    exit_code = EXIT_BAD_SPEC


class BadData(RunFailed):
    """The user's files cannot be trained on."""

    exit_code = EXIT_BAD_DATA


class UnsupportedModel(RunFailed):
    """The base model is of a kind that this trainer cannot train correctly or safely."""

    exit_code = EXIT_UNSUPPORTED_MODEL


class InfrastructureFailed(RunFailed):
    """Something around the run failed for longer than it could wait: network, storage, control plane."""

    exit_code = EXIT_INFRASTRUCTURE


class OutOfMemory(RunFailed):
    """The device has too little memory for the way in which this run computes; the next attempt takes a smaller one."""

    exit_code = EXIT_OUT_OF_MEMORY


def checkpoint_damaged(step: int, why: str) -> InfrastructureFailed:
    """How a run ends that cannot resume from the checkpoint of its spec: by this code the next one gets an older."""
    return InfrastructureFailed(Problem("checkpoint_damaged", f"The checkpoint of step {step} is damaged: {why}."))


def disk_full() -> InfrastructureFailed:
    """How a run ends whose working disk has no room left."""
    message = (
        "The disk that the run works on is full. Have its operator free some space; the run goes on from its last "
        "checkpoint."
    )
    return InfrastructureFailed(Problem("disk_full", message))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a GPU or in the process. By name: torch loads slowly."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no room left on a disk; the safetensors library says it in words only."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    return type(error).__name__ == "SafetensorError" and any(f"(os error {code})" in str(error) for code in _NO_ROOM)


class Yielded(Exception):
    """The run stops because it was told to: paused, cancelled, or replaced by a newer attempt (fenced)."""
