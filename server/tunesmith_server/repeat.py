"""Owns how a task beside the servers repeats its step: by time, at once when woken, and through failures.

It must not know what a step does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tunesmith_server.db.session import DATABASE_FAILURES, failure_reason

_log = logging.getLogger(__name__)


async def repeat(step: Callable[[], Awaitable[object]], seconds: float, woken: asyncio.Event | None = None) -> None:
    """Runs `step` every `seconds`, earlier when `woken` is set, until it is cancelled."""
    woken = woken or asyncio.Event()
    name, told = getattr(step, "__qualname__", "a task"), ""
    while True:
        woken.clear()
        try:
            await step()
            told = ""
        except DATABASE_FAILURES as failure:
            # It fails pass after pass until an operator helps: said once, as long as it is the same.
            if (reason := failure_reason(failure)) != told:
                _log.error("passes of %s fail until the database works again: %s", name, reason)
            told = reason
        except Exception:
            # One bad pass must not end all later ones; the next pass starts from what is stored.
            _log.exception("a pass of %s failed; the next one follows", name)
        await rest(woken, seconds)


async def rest(woken: asyncio.Event, seconds: float) -> None:
    """Returns once `woken` is set, or after so many seconds."""
    try:
        # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return
