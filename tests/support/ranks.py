"""Real ranks for tests: processes that stay, each of which does one part of what the ranks of a run do together."""

import logging
import multiprocessing
import os
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from tunesmith_trainer import distributed

_Result = TypeVar("_Result")


class Ranks:
    """`count` processes, started when they are first needed."""

    def __init__(self, count: int) -> None:
        # A pool for each: what torch keeps of a mesh of ranks would be wrong for a process that becomes another one.
        self._pools = [ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare) for _ in range(count)]

    def run(self, do: Callable[..., _Result], *arguments: Any) -> list[_Result]:
        """Calls a function of a module on every rank, joined into a group. Returns their results in order.

        An error on a rank is printed and ends all of them.
        """
        with TemporaryDirectory() as folder:
            return self.run_apart(_joined, Path(folder) / "meeting", do, arguments)

    def run_apart(self, do: Callable[..., _Result], *arguments: Any) -> list[_Result]:
        """As `run`, for functions that join a group themselves: they are given their rank and the count first."""
        count = len(self._pools)
        futures = [pool.submit(_or_die, do, rank, count, *arguments) for rank, pool in enumerate(self._pools)]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Ends them."""
        for pool in self._pools:
            pool.shutdown()


def _prepare() -> None:
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _joined(
    rank: int, count: int, meeting_place: Path, do: Callable[..., _Result], arguments: tuple[Any, ...]
) -> _Result:
    with distributed.joined(rank, count, meeting_place):
        return do(*arguments)


def _or_die(do: Callable[..., _Result], *arguments: Any) -> _Result:
    try:
        return do(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the other rank waits for this one, and stops when it is gone
