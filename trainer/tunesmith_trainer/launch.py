"""Owns the processes of a run on several devices: starts one per device, and ends all of them when one ends badly.
Must not know torch, nor what a rank does."""

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from tunesmith_trainer.errors import (
    EXIT_INFRASTRUCTURE,
    EXIT_YIELDED,
    BadData,
    BadSpec,
    InfrastructureFailed,
    OutOfMemory,
    Problem,
    RunFailed,
    UnsupportedModel,
    Yielded,
    disk_full,
)

logger = logging.getLogger(__name__)

_RANK = (sys.executable, "-m", "tunesmith_trainer", "rank")
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0
_SHIELD_SECONDS = 7200.0  # many times what the upload of a large checkpoint takes
_FAILURES = (BadSpec, BadData, UnsupportedModel, InfrastructureFailed, OutOfMemory, RunFailed)
# By which a rank may end only because another one has: NCCL aborts a process whose neighbour is gone.
_SIGNALS_OF_OTHERS = (signal.SIGABRT, signal.SIGTERM)
# Codes with a meaning of their own; by RunFailed's a rank also ends whose neighbour is gone.
_TELLING = {EXIT_YIELDED, *(kind.exit_code for kind in _FAILURES if kind is not RunFailed)}
_SHIELD = "shielded"
_SILENT = "A process of the run ended without saying why; see the run's log."
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


def launch(count: int, work: Path, command: Sequence[str] = _RANK) -> None:
    """Runs `count` ranks in the folder `work` to their end, in the session of this process.

    Raises what ended the run, whichever rank it came from: RunFailed or Yielded. Where a rank was killed by a signal,
    this process ends as if it had been killed by it, and SIGTERM ends the ranks and then this process: whoever started
    it sees what it would see of a run without ranks. Where another rank ended badly, the leader may end what it has
    `shielded` first.
    """
    signal.signal(signal.SIGTERM, _leave)
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        ranks.extend(_start(command, rank, count, work) for rank in range(count))
        while not any(codes := _codes(ranks)) and None in codes:
            time.sleep(_POLL_SECONDS)
        codes = _codes(ranks)  # once more: the rank that took the one just seen with it has ended before
        notes = _notes(work, count)  # what is noted later comes of that
        if any(codes):
            _await_shielded(ranks[0], work)
    finally:
        _end(ranks)
    if any(codes):
        _raise_cause(codes, notes)


@contextmanager
def shielded(work: Path) -> Iterator[None]:
    """For the length of a block, the rank that leads is not ended because another one has failed."""
    shield = work / _SHIELD
    with suppress(OSError):  # a full disk must not end what may still be uploaded from it
        shield.touch()
    try:
        yield
    finally:
        shield.unlink(missing_ok=True)


def note_end(work: Path, rank: int, failure: RunFailed | Yielded) -> int:
    """Leaves behind how a rank ended, for whoever launched it. Returns the exit code."""
    if isinstance(failure, Yielded):
        code, problems = EXIT_YIELDED, [Problem("yielded", str(failure))]
    else:
        code, problems = failure.exit_code, list(failure.problems)
    # The clock is the machine's: what ranks note can be put in order.
    note = {"at": time.monotonic(), "exit_code": code, "problems": [asdict(problem) for problem in problems]}
    try:
        _note(work, rank).write_text(json.dumps(note))
    except OSError as error:  # the disk may be what has failed; the code is heard without it
        logger.warning("how the rank ended could not be noted: %s", error)
        _note(work, rank).unlink(missing_ok=True)
    return code


def follow(launcher: int) -> None:
    """Makes this process die with the one that started it, also by SIGKILL, where the system can do that."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, int(signal.SIGKILL))
    if os.getppid() != launcher:  # it was gone before we could ask for that
        sys.exit(EXIT_INFRASTRUCTURE)


def _start(command: Sequence[str], rank: int, count: int, work: Path) -> subprocess.Popen[bytes]:
    arguments = ["--rank", str(rank), "--count", str(count), "--work", str(work), "--launcher", str(os.getpid())]
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    return subprocess.Popen([*command, *arguments], env=environment)


def _codes(ranks: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    return [rank.poll() for rank in ranks]


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to those that still run, SIGKILL to those left after the grace."""
    for rank in ranks:
        rank.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for rank in ranks:
        with suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, deadline - time.monotonic()))
        rank.kill()
        rank.wait()


def _await_shielded(leader: subprocess.Popen[bytes], work: Path) -> None:
    deadline = time.monotonic() + _SHIELD_SECONDS
    while leader.poll() is None and (work / _SHIELD).exists() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _raise_cause(codes: Sequence[int | None], notes: Sequence[dict[str, Any] | None]) -> NoReturn:
    """Tells the rank that ended the run from those that failed because it was gone."""
    said = [note for note in notes if note is not None]
    is_told = bool(said) or any(code in _TELLING for code in codes)
    signals = [-code for code in codes if code is not None and code < 0]
    signals = [number for number in signals if not is_told or number not in _SIGNALS_OF_OTHERS]
    if signals:
        logger.error("a rank was killed by signal %d; what other ranks say comes of that", signals[0])
        if signals[0] == signal.SIGKILL:  # by itself, not a code for it: it may mean that there is no memory left
            os.kill(os.getpid(), signal.SIGKILL)
        _leave(signals[0], None)
    _raise_silent([code for code, note in zip(codes, notes, strict=True) if note is None])
    if not said:
        raise RunFailed(Problem("trainer_error", _SILENT))
    first = min(said, key=lambda note: float(note["at"]))
    problems = [Problem(**problem) for problem in first["problems"]]
    if first["exit_code"] == EXIT_YIELDED:
        raise Yielded(problems[0].message)
    raise next(kind for kind in _FAILURES if kind.exit_code == first["exit_code"])(*problems)


def _raise_silent(codes: Sequence[int | None]) -> None:
    """Raises what ranks knew, by their exit codes, and could not note, as on a full disk; nothing where none did."""
    if EXIT_YIELDED in codes:
        raise Yielded("a process of the run was told to stop")
    if EXIT_INFRASTRUCTURE in codes:
        raise disk_full()
    for kind in _FAILURES:
        if kind.exit_code in codes and kind.exit_code in _TELLING:
            raise kind(Problem("trainer_error", _SILENT))


def _notes(work: Path, count: int) -> list[dict[str, Any] | None]:
    """How each rank says that it has ended; None where it has not, or not to the end."""
    notes: list[dict[str, Any] | None] = [None] * count
    for rank in range(count):
        with suppress(FileNotFoundError, json.JSONDecodeError):
            notes[rank] = json.loads(_note(work, rank).read_text())
    return notes


def _note(work: Path, rank: int) -> Path:
    return work / f"end-{rank}.json"
