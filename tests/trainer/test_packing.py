"""Packs: nothing lost, nothing mixed up, never over budget."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith_trainer.packing import pack
from tunesmith_trainer.rendering import Example


def make(lengths: list[int]) -> list[Example]:
    return [
        Example(index + 1, np.arange(length, dtype=np.int32) + 1000 * index, np.arange(length) % 3 == 1)
        for index, length in enumerate(lengths)
    ]


@given(st.lists(st.integers(2, 90), min_size=1, max_size=40), st.integers(1, 100))
def test_every_example_lies_in_exactly_one_pack(lengths: list[int], budget: int) -> None:
    packs = pack(make(lengths), budget)

    assert sorted(member for one in packs for member in one.members) == list(range(len(lengths)))
    for one in packs:
        assert sum(one.lengths) == len(one.token_ids) == len(one.positions)
        assert len(one.token_ids) <= budget or len(one.members) == 1
        assert sum(one.label_counts) == len(one.targets) == len(one.label_positions)


def test_targets_follow_their_positions_within_the_document() -> None:
    (one,) = pack(make([4, 5]), 100)

    assert one.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert one.targets.tolist() == [1, 1001, 1004]
    assert one.token_ids[one.label_positions].tolist() == [0, 1000, 1003]
