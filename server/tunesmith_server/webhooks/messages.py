"""Owns what a webhook says and when it is said again: pure functions.

It must not know receivers or the database.
"""

from __future__ import annotations

import json
import zlib

RETRY_DELAYS = (5, 60, 300, 1800, 7200, 18000, 28800, 28800)
"""Seconds from one attempt to the next: nine attempts within a day."""

_JITTER = 0.1


def event_body(event_id: str, event_type: str, created_at: int, subject_id: str) -> bytes:
    """The body, the same bytes at every attempt."""
    event = {
        "id": event_id,
        "object": "event",
        "created_at": created_at,
        "type": event_type,
        "data": {"id": subject_id},
    }
    return json.dumps(event, separators=(",", ":")).encode()


def retry_delay(message_id: str, attempts: int) -> float | None:
    """Seconds until the attempt after `attempts` failed ones; None when that was the last.

    Spread by up to a tenth, so that a receiver that comes back is not met by all messages at once; the spread
    follows from the message, which keeps this function pure.
    """
    if attempts > len(RETRY_DELAYS):
        return None
    place = zlib.crc32(f"{message_id}.{attempts}".encode()) / 2**32
    return RETRY_DELAYS[attempts - 1] * (1 + _JITTER * (2 * place - 1))
