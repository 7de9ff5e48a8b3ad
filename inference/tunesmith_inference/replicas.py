"""Owns telling the control plane what this gateway's engines hold, so that users can read why a model does not answer.

It must not know how engines come to hold something, or how a report travels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

_LOOK_SECONDS = 0.5
_REPEAT_SECONDS = 10.0
_SHARING_SECONDS = 1.0
"""Between two reports of a gateway that shares models out with others: the answers tell of those."""
_LAST_REPORT_SECONDS = 5.0

_log = logging.getLogger(__name__)


class ReplicaState(StrEnum):
    """How far an engine is with a revision."""

    FETCHING = "fetching"
    LOADING = "loading"
    PROBING = "probing"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


COMING = (ReplicaState.FETCHING, ReplicaState.LOADING, ReplicaState.PROBING)
"""On the way to be ready."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One revision in one engine; `reason` is why it failed or is tried again, `in_flight` what is being answered."""

    revision: str
    engine: str
    state: ReplicaState
    reason: str = ""
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Aged:
    """A replica and the Unix second since which it is in its state."""

    replica: Replica
    since: int


class ReportLost(Exception):
    """The control plane did not say that it has the report."""


class ReplicaReports:
    """Sends what `replicas` gives at each change in it, and now and then; `send` may raise ReportLost.

    Where models are shared out with other gateways, it does so often.
    """

    def __init__(
        self,
        replicas: Callable[[], Iterable[Replica]],
        send: Callable[[Sequence[Aged]], Awaitable[None]],
        clock: Callable[[], float] = time.time,
        *,
        sharing: bool = False,
    ) -> None:
        self._repeat_seconds = _SHARING_SECONDS if sharing else _REPEAT_SECONDS
        self._replicas = replicas
        self._send = send
        self._clock = clock
        self._told: dict[tuple[str, str], tuple[ReplicaState, str, int]] = {}
        self._sent_at = float("-inf")

    async def run(self) -> None:
        """Reports for ever."""
        while True:
            try:
                await self.look()
            except ReportLost as error:
                _log.warning("what the engines hold is not reported: %s", error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Sends a report if a state or a reason has changed since the last one, or if that is long ago."""
        now = self._clock()
        replicas = list(self._replicas())
        telling: dict[tuple[str, str], tuple[ReplicaState, str, int]] = {}
        for replica in replicas:
            key = (replica.engine, replica.revision)
            state, _, since = self._told.get(key, (None, "", 0))
            telling[key] = (replica.state, replica.reason, since if state is replica.state else int(now))
        if telling == self._told and now - self._sent_at < self._repeat_seconds:
            return
        await self._send([Aged(replica, telling[replica.engine, replica.revision][2]) for replica in replicas])
        self._told, self._sent_at = telling, now

    async def close(self) -> None:
        """Tells that nothing is held any more, for a few seconds at most: silence is believed only after a while."""
        try:
            async with asyncio.timeout(_LAST_REPORT_SECONDS):
                await self._send([])
        except (ReportLost, TimeoutError) as error:
            _log.warning("that the engines hold nothing any more is not reported: %s", error)
