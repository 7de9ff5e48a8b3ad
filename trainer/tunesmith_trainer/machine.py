"""Owns what this machine offers to a training run: memory and speed, without taking a GPU to find out.
Must not know models, data or jobs."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tunesmith_trainer.gpus import largest, promised_gpu, visible_gpus
from tunesmith_trainer.model import CPU_PACK_TOKENS, GPU_PACK_TOKENS
from tunesmith_trainer.processor import choose_cpu_dtype

_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
_CGROUP_USES = ("memory.current", "memory/memory.usage_in_bytes")
# Dense bfloat16 products per second, as the maker gives them, by a part of the device's name; the first that fits.
_GPU_FLOPS = (
    ("B200", 2.25e15),
    ("GH200", 0.99e15),
    ("H200", 0.99e15),
    ("H100 PCIe", 0.76e15),
    ("H100", 0.99e15),
    ("A100", 0.31e15),
    ("L40S", 0.36e15),
    ("L4", 0.12e15),
    ("A10", 0.125e15),
    ("5090", 0.21e15),
    ("4090", 0.165e15),
    ("3090", 0.071e15),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a training run of this machine computes.

    `available` bytes are free now, `capacity` is all there is, of `main_memory` as well, which for a processor is the
    same; `flops` per second of products in `dtype`, None where
    that is not known; `pack_tokens` is the size of a micro-batch.
    """

    device: str
    is_gpu: bool
    dtype: str
    pack_tokens: int
    available: int
    capacity: int
    flops: float | None
    main_memory: int

    def for_each_of(self, ranks: int) -> "Machine":
        """What each of so many ranks has: a GPU of its own, or its part of processor and main memory."""
        if self.is_gpu or ranks == 1:
            return self
        flops = None if self.flops is None else self.flops / ranks
        available, capacity = self.available // ranks, self.capacity // ranks
        return replace(self, available=available, capacity=capacity, flops=flops)


def survey() -> Machine:
    """Looks at the largest visible GPU, else the one that runs are promised, else at processor and main memory."""
    promised = promised_gpu()
    gpu = largest(visible_gpus() or ([promised] if promised else []))
    free, main = memory_of(torch.device("cpu"))
    if gpu is not None:
        name, capacity, available, has_bfloat16 = gpu
        dtype = "bfloat16" if has_bfloat16 else "float32"
        flops = next((flops for part, flops in _GPU_FLOPS if part in name), None)
        return Machine(name, True, dtype, GPU_PACK_TOKENS, available, capacity, flops, main)
    dtype, flops_of_cpu, _ = choose_cpu_dtype()
    return Machine("cpu", False, dtype, CPU_PACK_TOKENS, free, main, flops_of_cpu, main)


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes of the device that a run computes on which are free now, and all that it has."""
    if device.type == "cuda":
        available, capacity = torch.cuda.mem_get_info(device)
    else:
        capacity, available = main_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))
    return available, capacity


def main_memory(meminfo: Path, cgroup: Path) -> tuple[int, int]:
    """Bytes of main memory that a process may have, and those that are free, within the limit of the container."""
    kilobytes = {}
    for line in meminfo.read_text().splitlines():
        name, _, rest = line.partition(":")
        kilobytes[name] = int(rest.split()[0])
    capacity, available = kilobytes["MemTotal"] << 10, kilobytes["MemAvailable"] << 10
    limit = _first_number(cgroup, _CGROUP_LIMITS)
    if limit is None or limit >= capacity:
        return capacity, available
    used = (_first_number(cgroup, _CGROUP_USES) or 0) - _reclaimable(cgroup)
    return limit, min(available, max(0, limit - used))


def _reclaimable(cgroup: Path) -> int:
    """Bytes of cached files that make room when memory is needed."""
    for path in (cgroup / "memory.stat", cgroup / "memory/memory.stat"):
        if path.exists():
            numbers = dict(line.split() for line in path.read_text().splitlines())
            return int(numbers.get("inactive_file", 0))
    return 0


def _first_number(folder: Path, names: tuple[str, ...]) -> int | None:
    for name in names:
        path = folder / name
        if path.exists() and (text := path.read_text().strip()).isdecimal():
            return int(text)
    return None
