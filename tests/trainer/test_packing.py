"""Packs: nothing lost, nothing mixed up, never over budget."""

import math
import sys
from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith_trainer.example import Example, joined
from tunesmith_trainer.packing import Pack, pack


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


@st.composite
def beginning_alike(draw: st.DrawFn) -> list[Example]:
    """Examples of a document or two over an alphabet of two, so that many begin alike, labelled from anywhere."""
    rows = draw(st.lists(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=30), min_size=1, max_size=2)))
    examples = []
    for row, parts in enumerate(rows):
        documents = [
            Example(row, np.array(part, np.int32), np.arange(len(part)) >= draw(st.integers(1, len(part))))
            for part in parts
        ]
        examples.append(joined(documents))
    return examples


@given(beginning_alike(), st.integers(1, 100))
def test_shared_beginnings_lie_once_and_every_document_is_whole(examples: list[Example], budget: int) -> None:
    for one in pack(examples, budget, share_up_to=math.inf):
        assert len(one.token_ids) <= budget or len({*one.members}) == 1
        assert one.tokens == sum(len(examples[index].token_ids) for index in {*one.members})
        expected = [part for index in sorted({*one.members}) for part in labels_and_pasts(examples[index])]
        assert labelled_pasts(one) == expected


def labels_and_pasts(example: Example) -> list[tuple[int, list[int]]]:
    """Every labelled token with those before it, of each document."""
    return [
        (int(ids[at]), ids[:at].tolist())
        for ids, labelled in zip(
            np.split(example.token_ids, example.splits), np.split(example.labelled, example.splits), strict=True
        )
        for at in np.nonzero(labelled)[0]
    ]


def labelled_pasts(one: Pack) -> list[tuple[int, list[int]]]:
    """Every target of a pack with the tokens that its prediction sees, whose positions count from 0."""
    ends = [0, *accumulate(one.lengths)]
    found = []
    for target, position in zip(one.targets, one.label_positions, strict=True):
        own = max(end for end in ends if end <= position)
        seen = [at for start, end, last in sorted(one.shared) if end <= own < last for at in range(start, end)]
        seen += range(own, position + 1)
        assert one.positions[seen].tolist() == list(range(len(seen)))
        found.append((int(target), one.token_ids[seen].tolist()))
    return found


def test_a_common_beginning_is_computed_once() -> None:
    rows = [np.concatenate([np.arange(40), np.full(10, 100 + index)]).astype(np.int32) for index in range(5)]
    examples = [Example(index, row, np.arange(50) >= 45) for index, row in enumerate(rows)]

    (one,) = pack(examples, 100, share_up_to=math.inf)
    assert (len(one.token_ids), one.tokens, one.lengths, one.shared) == (
        90,
        250,
        (40, 10, 10, 10, 10, 10),
        ((0, 40, 90),),
    )
    assert len(pack(examples, 100)) == 3


def test_a_long_conversation_may_share_its_beginning_in_a_long_chain() -> None:
    """As rows are that are learnt answer by answer."""
    text = np.arange(5300, dtype=np.int32)
    parts = [Example(1, text[:length], np.arange(length) == length - 1) for length in range(100, 5300, 4)]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # as it is unless a tool of the tests has raised it
    try:
        (one,) = pack([joined(parts)], 10, share_up_to=math.inf)
    finally:
        sys.setrecursionlimit(limit)

    assert len(one.shared) == len(parts) - 1
    assert labelled_pasts(one) == [past for part in parts for past in labels_and_pasts(part)]


@given(beginning_alike(), st.integers(1, 100), st.sampled_from([0, math.inf]))
def test_documents_that_need_not_stay_together_all_lie_in_packs_within_the_budget(
    examples: list[Example], budget: int, share_up_to: float
) -> None:
    packs = pack(examples, budget, share_up_to=share_up_to, apart=True)

    assert all(len(one.token_ids) <= budget or len(one.members) == 1 for one in packs)
    found = sorted(past for one in packs for past in labelled_pasts(one))
    assert found == sorted(past for example in examples for past in labels_and_pasts(example))
    assert sum(one.tokens for one in packs) == sum(len(example.token_ids) for example in examples)
    counts = [0] * len(examples)
    for one in packs:
        for member, labels in zip(one.members, one.label_counts, strict=True):
            counts[member] += labels
    assert counts == [int(example.labelled.sum()) for example in examples]


def test_examples_go_where_they_share_most() -> None:
    starts = [np.arange(40) + 1000 * (index % 2) for index in range(6)]
    rows = [np.concatenate([start, np.full(10, 100 + index)]).astype(np.int32) for index, start in enumerate(starts)]
    examples = [Example(index, row, np.arange(50) >= 45) for index, row in enumerate(rows)]

    packs = pack(examples, 75, share_up_to=math.inf)
    assert sorted(one.members for one in packs) == [(0, 2, 4), (1, 3, 5)]


def test_what_is_learnt_is_never_shared() -> None:
    row = np.arange(30, dtype=np.int32)
    (one,) = pack([Example(index, row, np.arange(30) >= 9) for index in range(2)], 100, share_up_to=math.inf)

    assert one.shared == ((0, 8, 52),)
    assert sorted(one.label_positions.tolist()) == [*range(8, 29), *range(30, 51)]


def test_targets_follow_their_positions_within_the_document() -> None:
    (one,) = pack(make([4, 5]), 100)

    assert one.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert one.targets.tolist() == [1, 1001, 1004]
    assert one.token_ids[one.label_positions].tolist() == [0, 1000, 1003]
