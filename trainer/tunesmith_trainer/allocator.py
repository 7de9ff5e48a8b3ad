"""Owns how freed memory is kept for the next step, and when it is given back to the system.
Must not know models, data or torch."""

import ctypes
import os
import sys
from pathlib import Path

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells the C library to reuse what is freed. Returns whether it could be told.

    A step frees and allocates the same large tensors again and again. By default each is mapped afresh, and the kernel
    clears its pages once more: a tenth to a third of a step of SmolLM2-135M on a processor.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # musl has no such knobs
        return False
    return bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, _NEVER))


def give_back(above: int) -> bool:
    """Gives freed memory back to the system if this process has more than `above` bytes of it. Returns whether it did.

    Packs differ in length, so that what one of them freed does not fit the next one's tensors, and what is kept grows
    without end: SmolLM2-135M with full weights went from 4.0 to 6.6 GiB within forty steps. Between two packs most of
    it is free.
    """
    if not sys.platform.startswith("linux") or _resident() <= above:
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, "malloc_trim") and bool(library.malloc_trim(0))


def _resident() -> int:
    """Bytes of main memory that this process has."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
