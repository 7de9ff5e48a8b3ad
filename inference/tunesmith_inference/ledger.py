"""Owns what keys have used until the control plane has it: summed per key, model and hour, sent in numbered batches.

It must not know requests or how a batch travels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tunesmith_inference.auth import Principal

_HOUR = 3600
_REPORT_SECONDS = 5.0
_LAST_REPORT_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Use:
    """Whose use of what, and in which hour (Unix seconds of its start)."""

    project_id: str
    key_id: str
    model: str
    hour: int


@dataclass(slots=True)
class Sum:
    """What was used."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What is sent at once. The same sequence always comes with the same sums."""

    sequence: int
    sums: dict[Use, Sum]


class ReportFailed(Exception):
    """The control plane did not say that it has the batch; it may have it or not."""


class Ledger:
    """The use that is not reported yet. `send` delivers a batch or raises ReportFailed."""

    def __init__(self, send: Callable[[Batch], Awaitable[None]], clock: Callable[[], float] = time.time) -> None:
        self._send = send
        self._clock = clock
        self._open: dict[Use, Sum] = {}
        self._unsent: Batch | None = None
        self._sequence = 0

    def add(self, principal: Principal, model: str, usage: dict[str, Any]) -> None:
        """One answered request, with the engine's usage object."""
        now = int(self._clock())
        use = Use(principal.project_id, principal.key_id, model, now - now % _HOUR)
        total = self._open.setdefault(use, Sum())
        total.requests += 1
        total.input_tokens += usage.get("prompt_tokens") or 0
        total.output_tokens += usage.get("completion_tokens") or 0

    async def report(self) -> None:
        """Sends what there is; a batch whose fate is unknown goes first, unchanged. Raises ReportFailed."""
        while self._unsent is not None or self._open:
            if self._unsent is None:
                self._sequence += 1
                self._unsent, self._open = Batch(self._sequence, self._open), {}
            await self._send(self._unsent)
            self._unsent = None

    async def run(self) -> None:
        """Reports every few seconds, for ever."""
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            try:
                await self.report()
            except ReportFailed as error:
                _log.warning("usage is not reported yet: %s", error)

    async def close(self) -> None:
        """Reports what is left, for a few seconds at most."""
        try:
            async with asyncio.timeout(_LAST_REPORT_SECONDS):
                await self.report()
        except (ReportFailed, TimeoutError):
            _log.error("the usage of the last seconds could not be reported and is lost")
