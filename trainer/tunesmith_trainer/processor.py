"""Owns in which dtype the processor multiplies fastest, and how fast: measured, since flags about hardware have lied.
Must not know models, data or GPUs."""

import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import torch

from tunesmith_trainer.products import product

_PROBE = (512, 1024, 1024)  # rows, inner, columns of a product of a typical layer's size
_TRIES = 8
_PROBE_SECONDS = 120.0


def choose_cpu_dtype() -> tuple[str, float, str]:
    """The dtype that the processor multiplies fastest, its operations per second in it, and the reason."""
    rows, inner, columns = _PROBE
    operations = 2 * rows * inner * columns
    full = seconds_of_product(torch.float32)
    if not runs_bfloat16(Path("/proc/cpuinfo")):
        return "float32", operations / full, "the processor announces instructions for bfloat16 that it does not run"
    half = seconds_of_product(torch.bfloat16)
    reason = f"a product took {full * 1e3:.2f} ms in float32 and {half * 1e3:.2f} ms in bfloat16"
    return ("bfloat16", operations / half, reason) if half < 0.7 * full else ("float32", operations / full, reason)


def seconds_of_product(dtype: torch.dtype) -> float:
    """Best of several timed matrix products."""
    rows, inner, columns = _PROBE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    best = float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        product(left, right)
        best = min(best, time.perf_counter() - started)
    return best


@cache
def runs_bfloat16(cpuinfo: Path) -> bool:
    """Whether a product in bfloat16 returns; some virtual machines show tile instructions and then kill who uses them.

    Only there is it tried in a process of its own, which takes the time that torch needs to load.
    """
    if not cpuinfo.exists() or "amx_bf16" not in cpuinfo.read_text():
        return True
    script = f"from {__name__} import seconds_of_product, torch; seconds_of_product(torch.bfloat16)"
    try:
        tried = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0
