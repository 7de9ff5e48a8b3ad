"""Keeping freed memory, and giving it back."""

import multiprocessing

import torch

from tunesmith_trainer import allocator
from tunesmith_trainer.allocator import give_back, keep_freed_memory

MIB = 1 << 20


def test_the_c_library_can_be_told_more_than_once() -> None:
    assert keep_freed_memory() == keep_freed_memory()


def kept_and_after() -> tuple[int, bool, bool, int]:
    """What a process keeps of freed tensors below one in use, whether it gave back any, twice, and what it has then."""
    keep_freed_memory()
    tensors = [torch.ones(MIB) for _ in range(100)]
    last = torch.ones(MIB)
    tensors.clear()
    kept = allocator._resident()
    too_little, given = give_back(2 * kept), give_back(kept - MIB)
    assert last.sum() == MIB
    return kept, too_little, given, allocator._resident()


def test_what_is_freed_below_a_tensor_in_use_is_given_back_where_there_is_too_much() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        kept, too_little, given, after = pool.apply(kept_and_after)
    assert (too_little, given) == (False, True)
    assert after < kept - 300 * MIB
