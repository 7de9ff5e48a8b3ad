"""Owns running one measurement in a process of its own and reading what it found.
Must not know who trains, nor how."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

WARM_UP = 2
"""Steps that are not counted."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one process measured: real tokens per second after warm-up, bytes at the peak, the loss of each step.

    `way` says how ours computed; `used` is the part of the GPU's products that a token per second takes, None where
    that is not known.
    """

    speed: float
    peak_bytes: int
    cold_start: float
    losses: list[float]
    way: str = ""
    used: float | None = None


class MeasurementFailed(Exception):
    """The process failed. The message is the end of what it wrote."""

    @property
    def reason(self) -> str:
        """Its last line."""
        return str(self).strip().rpartition("\n")[2]


def measure(command: Sequence[str], work: Path) -> Run:
    """Runs the command, which trains on the workload. Raises MeasurementFailed."""
    done = subprocess.run([*command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MeasurementFailed(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    tokens = [sum(len(row["input_ids"]) for row in step) for step in json.loads(work.read_text())["steps"]]
    speeds = [count / seconds for count, seconds in zip(tokens, found.pop("seconds"), strict=True)][WARM_UP:]
    return Run(median(speeds), **found)
