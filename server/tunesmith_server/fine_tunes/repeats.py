"""Owns which create calls this process has refused lately: a client that repeats one of them has no job from it.

It must not know jobs or the database. Another control plane's refusals are not known here.
"""

from __future__ import annotations

_MOST = 10_000


class Refusals:
    """Refused calls, by project and body, each for so many `seconds` and one repetition."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._refused: dict[tuple[str, str], int] = {}

    def add(self, project_id: str, body_hash: str, now: int) -> None:
        """Notes a call that made nothing."""
        self._refused.pop((project_id, body_hash), None)  # to the end, where the newest are
        self._refused[project_id, body_hash] = now
        while (oldest := next(iter(self._refused.items())))[1] + self._seconds < now or len(self._refused) > _MOST:
            del self._refused[oldest[0]]

    def take(self, project_id: str, body_hash: str, now: int) -> bool:
        """Whether the last such call was refused; its repetition has then been heard of."""
        at = self._refused.pop((project_id, body_hash), None)
        return at is not None and at + self._seconds >= now
