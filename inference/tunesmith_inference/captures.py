"""Owns the captures that the control plane does not have yet: taken from answers, redacted, sent until they are there.

It must not know how they are redacted or how they travel. No request ever waits for it: what there is no room for is
dropped and counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeGuard

from tunesmith_inference.auth import Principal
from tunesmith_inference.ledger import ReportFailed
from tunesmith_inference.request_body import InferenceRequest, Route

MAX_CAPTURE_BYTES = 1024 * 1024
"""Of one capture; a larger one is not kept."""
BUFFER_BYTES = 64 * 1024 * 1024
"""Of all that wait."""

_BATCH_BYTES = 2 * 1024 * 1024
_BATCH = 64
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0
_LAST_REPORT_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Fate(StrEnum):
    """What became of a capture."""

    STORED = "stored"
    REFUSED = "refused"
    """By the control plane: its project has no room."""
    TOO_LARGE = "too_large"
    NO_ROOM = "no_room"
    """Too much waits here already."""
    REDACTION_FAILED = "redaction_failed"
    LOST = "lost"
    """This process stopped before the control plane had it."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A chat completion as it is to be kept; `messages`, `tools` and `answer` are JSON, `created` in Unix seconds."""

    id: str
    project_id: str
    key_id: str
    model: str
    created: int
    request_id: str
    metadata: Mapping[str, str]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    messages: str
    tools: str
    answer: str

    @property
    def size(self) -> int:
        """Bytes of what was said."""
        return len(self.messages) + len(self.tools) + len(self.answer)


class RedactionFailed(Exception):
    """The capture cannot be made fit to be kept; says why without quoting it."""


def wanted(principal: Principal, asked: InferenceRequest) -> bool:
    """Whether the answer is to be kept: the key has opted in, and the request has not opted out of it."""
    return principal.capture and asked.route is Route.CHAT and asked.stored


def captured(
    principal: Principal, asked: InferenceRequest, request_id: str, answer: Mapping[str, Any]
) -> Capture | None:
    """The capture of a whole answer, its first choice; None where a filter has emptied it."""
    choice = next(each for each in answer["choices"] if each["index"] == 0)
    reason, usage = choice.get("finish_reason"), answer.get("usage") or {}
    if reason in (None, "content_filter"):
        return None
    tools = asked.parameters.get("tools")
    return Capture(
        id=str(answer["id"]),
        project_id=principal.project_id,
        key_id=principal.key_id,
        model=asked.model,
        created=int(answer["created"]),
        request_id=request_id,
        metadata=asked.metadata,
        finish_reason=str(reason),
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        messages=json.dumps(asked.parameters["messages"]),
        tools=json.dumps(tools) if tools else "",
        answer=json.dumps({"role": "assistant", **choice["message"]}),
    )


class CaptureLog:
    """Captures on their way. `redact` raises RedactionFailed, `send` ReportFailed, and tells how many were refused."""

    def __init__(
        self,
        redact: Callable[[Capture], Awaitable[Capture]],
        send: Callable[[Sequence[Capture]], Awaitable[int]],
        count: Callable[[Fate, int], None],
    ) -> None:
        self._redact = redact
        self._send = send
        self._count = count
        self._waiting: deque[Capture] = deque()
        self._unsent: list[Capture] = []
        self._bytes = 0
        self._arrived = asyncio.Event()

    def add(self, capture: Capture) -> None:
        """Takes a capture, or drops and counts it where it is too large or too many wait."""
        if capture.size > MAX_CAPTURE_BYTES:
            self._count(Fate.TOO_LARGE, 1)
        elif self._bytes + capture.size > BUFFER_BYTES:
            self._count(Fate.NO_ROOM, 1)
        else:
            self._bytes += capture.size
            self._waiting.append(capture)
            self._arrived.set()

    async def run(self) -> None:
        """Sends what arrives, at once and again until it is there, for ever."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            await self._arrived.wait()
            try:
                await self.deliver()
            except ReportFailed as error:
                _log.warning("captures are not reported yet: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _FIRST_PAUSE_SECONDS

    async def deliver(self) -> None:
        """Sends all that waits; a batch whose fate is unknown goes first, unchanged. Raises ReportFailed."""
        while self._unsent or self._waiting:
            if not self._unsent:
                self._unsent = await self._next_batch()
            if self._unsent:
                refused = await self._send(self._unsent)
                self._count(Fate.REFUSED, refused)
                self._count(Fate.STORED, len(self._unsent) - refused)
                self._unsent = []
        self._arrived.clear()

    async def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        try:
            async with asyncio.timeout(_LAST_REPORT_SECONDS):
                await self.deliver()
        except (ReportFailed, TimeoutError):
            lost = len(self._unsent) + len(self._waiting)
            self._count(Fate.LOST, lost)
            _log.error("%d captures could not be reported and are lost", lost)

    async def _next_batch(self) -> list[Capture]:
        """What waits longest, redacted; until that is done it goes on waiting, so that a stop loses none of it."""
        chosen: list[Capture] = []
        size = 0
        for capture in self._waiting:
            size += capture.size
            if chosen and (size > _BATCH_BYTES or len(chosen) == _BATCH):
                break
            chosen.append(capture)
        results = await asyncio.gather(*map(self._redact, chosen), return_exceptions=True)
        for capture in chosen:
            self._waiting.popleft()
            self._bytes -= capture.size
        return [capture for capture in results if self._is_fit(capture)]

    def _is_fit(self, result: Capture | BaseException) -> TypeGuard[Capture]:
        if isinstance(result, RedactionFailed):
            self._count(Fate.REDACTION_FAILED, 1)
            _log.warning("a capture is dropped because it could not be redacted: %s", result)
            return False
        if isinstance(result, BaseException):
            raise result
        if result.size > MAX_CAPTURE_BYTES:
            self._count(Fate.TOO_LARGE, 1)
            return False
        return True
