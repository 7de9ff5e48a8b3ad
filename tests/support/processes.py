"""Owns what the kernel tells about running processes.

It must not know what they are for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_TCP_LISTENS = "0A"


def words(pid: int, what: str) -> list[str]:
    """The zero-separated words of /proc/PID/`what`."""
    return Path(f"/proc/{pid}/{what}").read_bytes().decode().rstrip("\0").split("\0")


def engine_at(socket: Path) -> int:
    """The engine that listens there, not its guard, whose command line holds the engine's; raises ValueError."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = words(int(process.name), "cmdline") if process.name.isdecimal() else []
            if str(socket) in line and "engine_guard" not in "".join(line):
                found.append(int(process.name))
    return min(found)


def descendants(pid: int) -> Iterator[int]:
    """The process and all below it."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from descendants(int(child))


def listens_on_tcp(pid: int) -> bool:
    """Whether the process, or one below it, takes TCP connections, from this machine or from others."""
    return any(map(_listens, descendants(pid)))


def _listens(pid: int) -> bool:
    own = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _TCP_LISTENS and f"socket:[{fields[9]}]" in own:
                return True
    return False
