"""Owns a clock that tests move by hand."""

from __future__ import annotations


class MovableClock:
    """Stands still until it is moved; call it for Unix seconds."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Moves the time on."""
        self.now += seconds
