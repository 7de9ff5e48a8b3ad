"""Owns what the kernel tells about running processes.

It must not know what they are for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_TCP_LISTENS = "0A"
_LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


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


def listens_to_others(pid: int) -> bool:
    """Whether the process, or one below it, takes TCP connections from beyond this machine."""
    return any(address not in _LOOPBACK for each in descendants(pid) for address in listening_at(each))


def listening_at(pid: int) -> list[str]:
    """The addresses at which the process itself takes TCP connections, in the kernel's hex."""
    found: list[str] = []
    own = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _TCP_LISTENS and f"socket:[{fields[9]}]" in own:
                found.append(fields[1].partition(":")[0])
    return found
