"""Owns the ranks of a run, one process per device: their group, who speaks for all, and what they sum, tell and share.
Must not know models, data or the control plane. Where a run has one rank there is no group and everything is local."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from tunesmith_trainer.errors import RunFailed, Yielded

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
# The other ranks wait while the leader uploads or waits for the control plane. A dead rank is not noticed by this
# limit but by whoever started the ranks.
_PATIENCE = timedelta(hours=6)
# Where ranks compute together, one comes later than another by what one row of many tokens takes, minutes at most. One
# that hangs, as on a GPU that is gone, shall not hold the others' devices for longer.
_STEP_PATIENCE = timedelta(hours=1)
_patient_group: dist.ProcessGroup | None = None  # of whatever may take hours; the other one is for computing


@contextmanager
def joined(rank: int, count: int, meeting_place: Path) -> Iterator[None]:
    """Makes this process one of `count` ranks, which meet at a file of their own, until the block ends well.

    Rank 0 leads. Where there are GPUs, each rank computes on the one with its number.
    """
    global _patient_group
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, init_method=f"file://{meeting_place}", rank=rank, world_size=count, timeout=_STEP_PATIENCE
    )
    _patient_group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    yield
    # Not after an error: the others may be anywhere, and leaving the group would wait for them.
    dist.destroy_process_group()
    _patient_group = None


def size() -> int:
    """How many ranks the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which one this process is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this process speaks for the run."""
    return rank() == 0


def by_leader(do: Callable[[], _Result]) -> _Result:
    """Does something on the leader only. Returns what came of it, or raises how the run ended by it, on every rank.

    Any other error ends the leader, and whoever started the ranks ends the others.
    """
    if size() == 1:
        return do()
    outcome: list[Any] = [None, None]
    if leads():
        try:
            outcome[0] = do()
        except (RunFailed, Yielded) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=_patient_group)
    if outcome[1] is not None:
        raise outcome[1]
    return cast("_Result", outcome[0])


def sum_up(tensors: Sequence[Tensor]) -> None:
    """Makes each tensor the sum over all ranks, in place and in one message. All are of one dtype and device.

    Ranks must come here within an hour of each other, as to whatever a sharded model computes; see `meet`.
    """
    if size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def gather(value: _Item) -> list[_Item]:
    """The values of all ranks, in their order; those that are ready wait for hours if need be."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value, group=_patient_group)
    return values


def meet() -> None:
    """Returns once all ranks have come here, however much longer than the others one has taken."""
    gather(None)


def deal(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Deals things of these sizes to so many hands, about as much to each: the largest first, to whom has least so far.

    Returns each hand's indices in order. One hand gets all; a hand may stay empty.
    """
    held: list[list[int]] = [[] for _ in range(hands)]
    loads = [0] * hands
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        hand = loads.index(min(loads))
        held[hand].append(index)
        loads[hand] += sizes[index]
    return [sorted(hand) for hand in held]


def share_out(
    items: Sequence[_Item], sizes: Sequence[int], do: Callable[[_Item], _Result], idle: Callable[[], object]
) -> list[_Result]:
    """Does something with every item, each on one rank. Returns the results in the items' order, on every rank.

    Ranks with fewer items do `idle` instead, so that all ranks act equally often.
    """
    shares = deal(sizes, size())
    own = {index: do(items[index]) for index in shares[rank()]}
    for _ in range(max(map(len, shares)) - len(own)):
        idle()
    found = {index: result for results in gather(own) for index, result in results.items()}
    return [found[index] for index in range(len(items))]
