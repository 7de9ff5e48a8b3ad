"""Owns the promise that a child process ends with its parent, even when the parent is killed.

It must not know what the child does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def guarded(*command: str) -> tuple[str, ...]:
    """The command line that runs `command` so that it ends with this process."""
    return (sys.executable, "-m", "tunesmith_server.parent_guard", str(os.getpid()), *command)


def main() -> None:
    """Asks the kernel for SIGTERM at the parent's death, then becomes the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    # The request outlives exec. It is made here and not between fork and exec, where threads make Python unsafe.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the request was made
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 (the command comes from our own parent)


if __name__ == "__main__":
    main()
