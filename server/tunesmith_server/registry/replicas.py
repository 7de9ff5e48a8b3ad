"""Owns what gateways say their engines hold, until they say otherwise or fall silent.

It must not know transports, names of models or SQL. Nothing is kept on disk: gateways say it all again every few
seconds, also to a control plane that has just started.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tunesmith_server.clock import Clock

_SILENT_SECONDS = 60
"""A gateway that says nothing for so long is gone, and its engines with it."""


class ReplicaState(StrEnum):
    """How far an engine is with a revision, the furthest first."""

    READY = "ready"
    DRAINING = "draining"
    PROBING = "probing"
    LOADING = "loading"
    FETCHING = "fetching"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Replica:
    """One revision in one engine; `since` in Unix seconds, `in_flight` requests."""

    revision: str
    gateway: str
    engine: str
    state: ReplicaState
    reason: str | None
    since: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Serving:
    """How far the furthest replica of a revision is, `not_loaded` where there is none, and why if it failed."""

    state: str
    reason: str | None
    replicas: tuple[Replica, ...]


class Replicas:
    """The last report of each gateway."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reports: dict[str, tuple[float, Sequence[Replica]]] = {}

    def take(self, gateway: str, replicas: Sequence[Replica]) -> None:
        """Puts a gateway's report in the place of its last one."""
        now = self._clock()
        alive = {name: report for name, report in self._reports.items() if now - report[0] < _SILENT_SECONDS}
        self._reports = alive | {gateway: (now, replicas)}

    def of(self, revision: str) -> Serving:
        """What is known of a revision."""
        now = self._clock()
        order = list(ReplicaState)
        found = sorted(
            (
                replica
                for at, replicas in self._reports.values()
                if now - at < _SILENT_SECONDS
                for replica in replicas
                if replica.revision == revision
            ),
            key=lambda replica: (order.index(replica.state), replica.gateway, replica.engine),
        )
        if not found:
            return Serving("not_loaded", None, ())
        return Serving(found[0].state, found[0].reason, tuple(found))
