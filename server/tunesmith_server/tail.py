"""Owns reading the end of a text file that may be long, still growing or gone.

It must not know whose output it is.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_TAIL_BYTES = 1024 * 1024
"""The most that is read, kept or shown of an output: what is as long may have been cut."""


def read_tail(path: Path, max_bytes: int) -> str:
    """The last `max_bytes` as text, what is no UTF-8 replaced; empty where the file cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - max_bytes))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
