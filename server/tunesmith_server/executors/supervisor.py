"""Owns the process above one run on a machine: starts it once and leaves its exit code behind, whoever has died.

It must not know the control plane: a plain script on the standard library, `supervisor.py RUN_FOLDER COMMAND…`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

IDENTITY_FILE = "supervisor.json"
EXIT_CODE_FILE = "exit_code"
LOG_FILE = "log"
WORK_FOLDER = "work"
COMMAND_NOT_STARTED = 127
"""Exit code when the command cannot be executed, as a shell has it."""
OUT_OF_MEMORY = 71
"""Exit code of a run that says so itself, and of one that the kernel killed for it."""
_COUNTERS = Path("/proc/vmstat")


def main(arguments: list[str]) -> int:
    """Runs the command once in the run folder; a second supervisor of the same folder, wherever it is, does nothing."""
    folder, command = Path(arguments[0]), arguments[1:]
    if not _claim(folder):
        return 0
    # A handler, not SIG_IGN: ignoring would be inherited by the run, which is the one that must hear the signal.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    write_atomically(folder / EXIT_CODE_FILE, str(_run(folder, command)))
    return 0


def open_log(folder: Path) -> BinaryIO:
    """The run's output file, for appending; only the owner may read it."""
    return os.fdopen(os.open(folder / LOG_FILE, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), "ab")


def read_exit_code(folder: Path) -> int | None:
    """What the run in the folder ended with; None when it has not, or its supervisor could not say."""
    try:
        return int((folder / EXIT_CODE_FILE).read_text())
    except FileNotFoundError:
        return None


def boot_id() -> str:
    """Differs after every boot, so that process ids of an earlier one are not believed."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def place(folder: Path) -> list[int]:
    """Device and inode of the folder: a copy of it has others, also on the same machine."""
    status = folder.stat()
    return [status.st_dev, status.st_ino]


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of the process; None when it is gone or only waits to be reaped."""
    fields = stat_fields(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on; None when there is no such process."""
    try:
        # The second field is the name in parentheses and may itself hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def kills_for_memory(counters: Path) -> int:
    """Processes that the kernel has killed for lack of memory since it booted; 0 where it does not tell."""
    lines = counters.read_text().splitlines() if counters.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def write_atomically(path: Path, text: str) -> None:
    """Readers see the whole text or no file, also after a crash of the machine; only the owner may read it."""
    _write_beside(path, text).replace(path)


def _claim(folder: Path) -> bool:
    """Takes the folder unless it is taken. A link is exclusive on shared file systems too; locks may not be."""
    pid = os.getpid()
    identity = {"pid": pid, "start_time": start_time(pid), "boot_id": boot_id(), "place": place(folder)}
    written = _write_beside(folder / IDENTITY_FILE, json.dumps(identity))
    try:
        os.link(written, folder / IDENTITY_FILE)
    except FileExistsError:
        # NFS may repeat a request whose answer was lost, and then says of our own link that it exists.
        return bool(json.loads((folder / IDENTITY_FILE).read_text()) == identity)
    finally:
        written.unlink()
    return True


def _write_beside(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _run(folder: Path, command: list[str]) -> int:
    work = folder / WORK_FOLDER
    work.mkdir(exist_ok=True)
    killed_before = kills_for_memory(_COUNTERS)
    with open_log(folder) as log:
        try:
            # No shell: the command is a list that the operator's settings name.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=work
            )
        except OSError as error:
            log.write(f"cannot start {command[0]}: {error}\n".encode())
            return COMMAND_NOT_STARTED
        code = process.wait()
        if code == -signal.SIGKILL and kills_for_memory(_COUNTERS) > killed_before:
            log.write(b"killed while the kernel was out of memory\n")
            return OUT_OF_MEMORY
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
