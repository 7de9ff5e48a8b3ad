"""Owns which NVIDIA GPUs this process may use, without taking one to find out.
Must not know torch, models or jobs."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_NVIDIA_SECONDS = 30.0
_QUERY = ("--query-gpu=index,uuid,name,memory.total,memory.free,compute_cap", "--format=csv,noheader,nounits")
FIRST_WITH_BFLOAT16 = 8
"""The compute capability (Ampere) from which GPUs multiply bfloat16 and run flash attention."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. Memory in bytes; None where the driver does not tell, as for a part of a device.

    `has_bfloat16` is taken to be so where nothing is known of it.
    """

    name: str
    capacity: int | None
    available: int | None
    has_bfloat16: bool = True


def visible_gpus() -> list[Gpu]:
    """The GPUs that CUDA would show us; by nvidia-smi, since asking CUDA would take memory on the device."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        answer = subprocess.run([command, *_QUERY], capture_output=True, text=True, timeout=_NVIDIA_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return gpus_of(answer.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def promised_gpu() -> Gpu | None:
    """What `TUNESMITH_GPU` (name and MiB, as nvidia-smi lists them) says a later run will have; None: nothing."""
    name, _, total = os.environ.get("TUNESMITH_GPU", "").rpartition(",")
    return Gpu(name.strip(), _bytes(total.strip()), _bytes(total.strip())) if name else None


def gpus_of(listing: str, visible: str | None) -> list[Gpu]:
    """The GPUs in nvidia-smi's `listing` that `visible`, indices or UUIDs, lets us use; None means all."""
    gpus = []
    named = None if visible is None else {name.strip() for name in visible.split(",")}
    for line in listing.splitlines():
        index, uuid, name, total, free, capability = (part.strip() for part in line.split(","))
        if named is None or index in named or uuid in named:
            major = capability.partition(".")[0]
            has_bfloat16 = not major.isdecimal() or int(major) >= FIRST_WITH_BFLOAT16
            gpus.append(Gpu(name, _bytes(total), _bytes(free), has_bfloat16))
    return gpus


def largest(gpus: Sequence[Gpu]) -> tuple[str, int, int, bool] | None:
    """Name, bytes, free bytes and whether it has bfloat16, of the one with the most memory, of those that tell it."""
    told = [
        (gpu.name, gpu.capacity, gpu.available, gpu.has_bfloat16)
        for gpu in gpus
        if gpu.capacity and gpu.available is not None
    ]
    return max(told, key=lambda gpu: gpu[1:3], default=None)


def _bytes(mebibytes: str) -> int | None:
    return int(mebibytes) << 20 if mebibytes.isdecimal() else None
