"""Owns how long following and waiting put up with a server that is away.
Must not know what is asked.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tunesmith._errors import APIConnectionError, InternalServerError, RateLimitError
from tunesmith._http import Transport

ResultT = TypeVar("ResultT")

OUTAGE_PATIENCE_S = 300.0
"""Long enough for a restart or an upgrade."""
OUTAGE_POLL_S = 1.0


async def outlast(
    transport: Transport, ask: Callable[[], Awaitable[ResultT]], deadline: float = float("inf")
) -> ResultT:
    """Ask again and again while the server is away, up to `OUTAGE_PATIENCE_S` or the deadline (monotonic)."""
    give_up = min(deadline, time.monotonic() + OUTAGE_PATIENCE_S)
    while True:
        try:
            return await ask()
        except (APIConnectionError, InternalServerError, RateLimitError):
            if time.monotonic() >= give_up:
                raise
            await transport.sleep(OUTAGE_POLL_S)
