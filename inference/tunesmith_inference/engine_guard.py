"""Owns the last line of defence against orphans: runs a command and kills its whole process group when the parent goes.

It must not know what the command is. Run as `python engine_guard.py COMMAND…` with a pipe as standard input, in a
process group of its own. The pipe's end tells that the parent closed it or died, by whatever means.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10.0
"""Time for the command to end by itself after SIGTERM."""


def main() -> None:
    """Runs the command until it ends or the parent goes; either way everything in the group ends, this process too."""
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # the gateway's own command line
    threading.Thread(target=_wait_for_parent, args=(command,), daemon=True).start()
    status = command.wait()
    sys.stderr.write(f"ended with status {status}\n")
    sys.stderr.flush()
    # Children that the command left behind share the group.
    os.killpg(0, signal.SIGKILL)


def _wait_for_parent(command: subprocess.Popen[bytes]) -> None:
    while sys.stdin.buffer.read(1):
        pass
    command.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.wait(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
