"""Owns what the scheduler asks of an executor.

It must not know a kind of machine. "Unreachable" is an answer of its own and never means failed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

_ATTEMPT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices that an executor may give to runs."""

    devices: tuple[str, ...]
    """Ids that stay the same while the machine does: a GPU's UUID, or the name of a slot where there is no GPU."""


class RunState(StrEnum):
    """What an executor can say about a run."""

    PENDING = "pending"
    RUNNING = "running"
    EXITED = "exited"
    GONE = "gone"
    """The executor is sure that nothing of this attempt exists (any more)."""
    UNREACHABLE = "unreachable"
    """The executor cannot tell."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Answer of `observe`. `exit_code` is set when exited; signals are 128 + number, as a shell says it."""

    state: RunState
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """What an executor needs to start a run; the run fetches everything else by itself."""

    attempt_id: str
    token: str = field(repr=False)
    """Bearer token of the attempt."""
    control_plane: str = ""
    """gRPC host:port as the run reaches it."""
    devices: tuple[str, ...] = ()
    """Ids out of the executor's inventory; the run may use these and no others. A preflight has none."""

    @property
    def settings(self) -> dict[str, str]:
        """What every run is told by its environment, wherever it runs: one rank for each of its devices."""
        return {
            "TUNESMITH_CONTROL_PLANE": self.control_plane,
            "TUNESMITH_RANKS": str(max(1, len(self.devices))),
            "PYTHONUNBUFFERED": "1",
        }


def require_attempt_id(attempt_id: str) -> str:
    """The id, which becomes part of paths and names; raises ValueError for what could mean something else there."""
    if not _ATTEMPT_ID.fullmatch(attempt_id):
        raise ValueError("an attempt id is at most 64 ASCII letters, digits, '-' and '_', a letter or digit first")
    return attempt_id


class Executor(Protocol):
    """Starts, observes and stops runs; the attempt id is the name under which a run is found again.

    `tests/server/executors/contract.py` holds what every implementation must do.
    """

    async def capabilities(self) -> Inventory:
        """The devices that runs can have; raises UnavailableError when that cannot be told now."""

    async def ensure(self, launch: Launch) -> None:
        """Starts the run unless one of this attempt id exists already; raises UnavailableError."""

    async def observe(self, attempt_id: str) -> Observation:
        """What became of the run; an executor that cannot tell says unreachable and raises nothing."""

    async def stop(self, attempt_id: str, grace_seconds: float) -> None:
        """Asks the run to end and kills it after the grace; no error when it is gone.

        Raises UnavailableError when the run cannot be reached now.
        """

    async def list_attempts(self) -> list[str]:
        """Attempt ids of all runs that the executor still knows, for the orphan sweep; none when it cannot tell now.

        Runs of other installations on the same machines are not among them.
        """

    async def forget(self, attempt_id: str) -> None:
        """Kills the run if it still runs and removes what is left of it (its folder, its container).

        Raises UnavailableError when that cannot be done now.
        """

    async def read_log(self, attempt_id: str, max_bytes: int = 65536) -> str:
        """The end of the run's output, or an empty string."""
