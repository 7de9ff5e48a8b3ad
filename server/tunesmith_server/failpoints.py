"""Owns the named points at which a test has this process killed, as a power cut would do it.

It must not know what happens at a point. While none is armed, and outside of tests none is, a point costs a comparison.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

NAMES = (
    # `….writing`: inside the transaction, all is written and nothing committed; `….written`: just committed.
    "create.writing",
    "create.written",
    "steer.writing",
    "steer.written",
    "claim.writing",
    "claim.written",
    "launch.done",
    "executor.folder_made",
    "executor.process_started",
    "executor.run_recorded",
    "executor.stopped",
    "executor.run_killed",
    "heartbeat.writing",
    "heartbeat.written",
    "preflight.writing",
    "preflight.written",
    "promotion.copied",
    "promotion.sealed",
    "checkpoint.verified",
    "checkpoint.writing",
    "checkpoint.written",
    "success.verified",
    "success.writing",
    "success.written",
    "import.writing",
    "import.written",
    "failure.writing",
    "failure.written",
    "ending.log_kept",
    "ending.writing",
    "ending.written",
    "file.stored",
    "file.writing",
    "file.written",
    "capture.stored",
    "capture.writing",
    "capture.written",
    "upload.writing",
    "upload.written",
    "news.writing",
    "news.written",
    "delivery.sent",
    "delivery.written",
    "tracker.opened",
    "tracker.told",
    "tracker.closed",
    "sweep.claimed",
    "leadership.renewed",
)


def arm(text: str) -> None:
    """Has this process killed when it reaches a point: `name`, or `name:3` for the third time; "" for none.

    Raises ValueError for a name that no point has.
    """
    global _armed
    name, _, times = text.partition(":")
    if text and (name not in NAMES or not (times or "1").isdecimal()):
        raise ValueError(f"TUNESMITH_FAILPOINT must be one of {', '.join(NAMES)}, with :n for the n-th time")
    _armed = _Armed(name, int(times or "1")) if text else None


def reach(name: str) -> None:
    """Does nothing unless a test has armed this point."""
    if _armed is not None:
        _armed.reach(name)


@dataclass(slots=True)
class _Armed:
    name: str
    times_left: int

    def reach(self, name: str) -> None:
        if name == self.name:
            self.times_left -= 1
            if self.times_left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


_armed: _Armed | None = None
