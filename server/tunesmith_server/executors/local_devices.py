"""Owns which devices this machine offers to runs: its NVIDIA GPUs by UUID, or slots on a machine without.

It must not know jobs, nor load a training library to look.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from tunesmith_server.errors import UnavailableError

VISIBLE = "CUDA_VISIBLE_DEVICES"

_SLOT = "slot-"
_LIMIT_SECONDS = 30.0


def list_devices(slots: int) -> tuple[str, ...]:
    """UUIDs of the GPUs that the operator left to this process; without any GPU, so many slots.

    Raises UnavailableError when there is a driver that does not answer: a GPU that is busy starting is not absent.
    """
    return _driver_gpus() or tuple(f"{_SLOT}{number}" for number in range(slots))


def environment(devices: tuple[str, ...]) -> Mapping[str, str]:
    """What a run is told of its GPUs; nothing where it has none. A preflight may look at all, but takes no memory."""
    named = gpus(devices)
    return {VISIBLE: ",".join(named)} if named else {}


def gpus(devices: tuple[str, ...]) -> list[str]:
    """Those of the devices that are GPUs and no slots."""
    return [device for device in devices if not device.startswith(_SLOT)]


def _driver_gpus() -> tuple[str, ...]:
    command = shutil.which("nvidia-smi")
    if command is None or os.environ.get(VISIBLE) == "":  # hidden, whether or not the driver works
        return ()
    try:
        answer = subprocess.run(
            [command, "--query-gpu=index,uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError("devices_unknown", "nvidia-smi does not tell the GPUs of this machine.") from error
    uuids = dict(line.split(", ", 1) for line in answer.stdout.splitlines() if ", " in line)
    return _left_to_us(uuids, os.environ.get(VISIBLE))


def _left_to_us(uuids: Mapping[str, str], visible: str | None) -> tuple[str, ...]:
    """The GPUs in `visible` (indices or UUIDs, as CUDA reads it); unset means all."""
    # The last ones first: whatever else runs here, an inference engine above all, takes the first by default.
    if visible is None:
        return tuple(uuids.values())[::-1]
    named = [name.strip() for name in visible.split(",") if name.strip()]
    return tuple(uuids.get(name, name) for name in named if name in uuids or not name.lstrip("-").isdecimal())[::-1]
