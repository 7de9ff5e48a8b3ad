"""Owns how long following and waiting put up with a server that is away.
Must not know what is asked.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tunesmith._errors import APIConnectionError, InternalServerError, RateLimitError, WaitTimeoutError
from tunesmith._http import Transport

ResultT = TypeVar("ResultT")

OUTAGE_PATIENCE_S = 300.0
"""Long enough for a restart or an upgrade."""
OUTAGE_POLL_S = 1.0


async def wait_until(
    transport: Transport,
    look: Callable[[], Awaitable[ResultT]],
    still: Callable[[ResultT], str | None],
    *,
    timeout: float | None,  # noqa: ASYNC109 - looks in between must not be cut off by it
    poll_interval: float,
) -> ResultT:
    """Look again and again, through restarts of the server, until `still` has nothing to say of what was found.

    Raises:
        WaitTimeoutError: it took longer than `timeout` seconds; what `still` said is its beginning.
    """
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    found = await look()
    while (state := still(found)) is not None:
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(f"{state} after {timeout:g} seconds.")
        await transport.sleep(min(poll_interval, max(0.0, deadline - time.monotonic())))
        found = await outlast(transport, look, deadline)
    return found


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
