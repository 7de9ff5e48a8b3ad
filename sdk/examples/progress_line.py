"""Shows on the terminal how far a fine-tune is.

It knows nothing of where the job comes from. On a terminal one line is redrawn; in a log a new line is written now and
then.
"""

import sys
import time
from collections.abc import Sequence

from tunesmith.types import FineTune, FineTuneEvent

LOG_INTERVAL_S = 15.0


class ProgressLine:
    """The state of one job as it changes; call `close` at the end."""

    def __init__(self) -> None:
        self._on_terminal = sys.stdout.isatty()
        self._text = ""
        self._losses: dict[str, float] = {}
        self._last_shown = float("-inf")

    def show(self, job: FineTune, events: Sequence[FineTuneEvent]) -> None:
        """Shows the job; `events` are those since the last call. Warnings and errors get lines of their own."""
        for event in events:
            if event.level in ("warn", "error"):
                self._print_above(f"{event.level}: {event.message}")
            for name in ("train_loss", "valid_loss"):
                value = (event.data or {}).get(name)
                if event.type == "metrics" and isinstance(value, int | float):
                    self._losses[name] = float(value)
        self._draw(_describe(job, self._losses), urgent=job.finished)

    def close(self) -> None:
        """Ends the line that is being redrawn."""
        if self._on_terminal and self._text:
            print()
        self._text = ""

    def _draw(self, text: str, urgent: bool) -> None:
        if text == self._text:
            return
        now = time.monotonic()
        if self._on_terminal:
            print(f"\r  {text.ljust(len(self._text))}", end="", flush=True)
        elif urgent or now - self._last_shown >= LOG_INTERVAL_S:
            print(f"  {text}", flush=True)
            self._last_shown = now
        self._text = text

    def _print_above(self, text: str) -> None:
        if self._on_terminal:
            print("\r" + " " * (len(self._text) + 2) + "\r", end="")
            self._text = ""
        print(f"  {text}", flush=True)


def _describe(job: FineTune, losses: dict[str, float]) -> str:
    progress = job.progress
    if progress is None or job.finished:
        return job.status.replace("_", " ")
    parts = [progress.phase or job.status]
    if progress.total_steps:
        parts.append(f"step {progress.step or 0}/{progress.total_steps}")
    parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in losses.items()]
    if progress.remaining_seconds is not None:
        minutes, seconds = divmod(round(progress.remaining_seconds), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(parts)
