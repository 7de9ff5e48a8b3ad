"""Owns the process that speaks to a tracker, as the control plane sees it: a question, an answer, a time limit.

It must not know what is said. The process ends with the block that uses it, and with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tunesmith_server.parent_guard import guarded
from tunesmith_server.trackers.installation import client_environment

_END_SECONDS = 10.0


class CourierError(Exception):
    """The tracker refuses, its client failed or was silent for too long; the text is for the operator's log."""


class Courier:
    """One process, one job, one tracker."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self, request: str, content: object, seconds: float) -> dict[str, Any]:
        """The answer; raises CourierError."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("a courier needs pipes")
        try:
            async with asyncio.timeout(seconds):
                self._process.stdin.write(json.dumps({request: content}).encode() + b"\n")
                await self._process.stdin.drain()
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise CourierError(f"no answer to {request!r} within {seconds:g} seconds") from error
        except OSError as error:
            raise CourierError(f"the process ended before {request!r}") from error
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"the process ended during {request!r}"}
        if "error" in answer:
            raise CourierError(answer["error"])
        return answer

    async def end(self) -> None:
        """Waits a little for a process that has done its work, so that its client can tidy up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await self._process.wait()


@contextlib.asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Courier]:
    """A courier whose client may write below `folder`."""
    program = (sys.executable, "-m", "tunesmith_server.trackers.courier_program", str(folder))
    process = await asyncio.create_subprocess_exec(
        *guarded(*program), env=client_environment(), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
    )
    try:
        yield Courier(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
