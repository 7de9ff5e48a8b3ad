"""Ranks: dealing is even and loses nothing, and two real ranks learn what one would."""

import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ranks import Ranks
from tests.support.steps import Steps, assert_moved_alike, example, take_steps
from tunesmith_trainer import distributed
from tunesmith_trainer.errors import BadData, Problem

ROWS = [example(index, 5 + 7 * index, 2 + 5 * index) for index in range(1, 25)]  # very unequal label counts


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 8))
def test_dealing_gives_everything_once_and_about_as_much_to_each(sizes: list[int], hands: int) -> None:
    dealt = distributed.deal(sizes, hands)

    assert sorted(index for hand in dealt for index in hand) == list(range(len(sizes)))
    assert all(hand == sorted(hand) for hand in dealt)
    loads = [sum(sizes[index] for index in hand) for hand in dealt]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_one_rank_needs_no_group() -> None:
    tensor = torch.ones(2)
    distributed.sum_up([tensor])

    assert (distributed.size(), distributed.rank(), distributed.leads()) == (1, 0, True)
    assert tensor.tolist() == [1.0, 1.0]
    assert distributed.gather("a") == ["a"]
    assert distributed.by_leader(lambda: 3) == 3


def _talk() -> dict[str, object]:
    rank = distributed.rank()
    tensors = [torch.full((2,), float(rank + 1)), torch.full((1, 3), 10.0 * rank)]
    distributed.sum_up(tensors)
    idle: list[int] = []
    shared = distributed.share_out(["aaa", "b", "cc"], [3, 1, 2], lambda text: (text, rank), lambda: idle.append(1))
    try:
        distributed.by_leader(_refuse)
    except BadData as error:
        refused = [problem.row for problem in error.problems]
    return {
        "sums": [tensor.tolist() for tensor in tensors],
        "gathered": distributed.gather(rank),
        "shared": shared,
        "idle": len(idle),
        "told": distributed.by_leader(lambda: f"by {rank}"),
        "refused": refused,
    }


def _refuse() -> None:
    raise BadData(Problem("bad", "This row is bad.", "training_file", 7), Problem("bad", "So is this.", None, 9))


def test_two_ranks_sum_share_and_hear_the_leader(two_ranks: Ranks) -> None:
    first, second = two_ranks.run(_talk)

    assert first["sums"] == second["sums"] == [[3.0, 3.0], [[10.0, 10.0, 10.0]]]
    assert first["gathered"] == second["gathered"] == [0, 1]
    assert first["shared"] == second["shared"] == [("aaa", 0), ("b", 1), ("cc", 1)]
    assert (first["idle"], second["idle"]) == (1, 0)
    assert first["told"] == second["told"] == "by 0"
    assert first["refused"] == second["refused"] == [7, 9]


def _hang(rank: int, count: int, meeting_place: Path) -> tuple[float, str]:
    assert distributed._PATIENCE > 4 * distributed._STEP_PATIENCE
    with (
        mock.patch.object(distributed, "_STEP_PATIENCE", timedelta(seconds=1)),
        distributed.joined(rank, count, meeting_place),
    ):
        distributed.meet()
        started = time.monotonic()
        said = distributed.by_leader(_wait_in_vain)
        return time.monotonic() - started, said


def _wait_in_vain() -> str:
    with pytest.raises(RuntimeError, match=r"(?i)timed out"):
        distributed.sum_up([torch.ones(1)])
    return "nobody came"


def test_ranks_wait_longer_for_what_the_leader_does_than_for_each_others_numbers(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    """The leader waits for the other one's numbers, which waits all the while for the leader."""
    (_, first), (waited, second) = two_ranks.run_apart(_hang, tmp_path / "meeting")

    assert first == second == "nobody came"
    assert waited > 0.5


def _steps(base: Path, full_weights: bool, batch_size: int, pack_tokens: int) -> Steps:
    rows = ROWS[: 3 * batch_size]
    return take_steps(base, rows, full_weights=full_weights, batch_size=batch_size, pack_tokens=pack_tokens)


@pytest.mark.parametrize("full_weights", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("embeddings", ["tied", "untied"])
def test_two_ranks_learn_what_one_learns_however_rows_are_packed(
    base: Path, untied: Path, two_ranks: Ranks, embeddings: str, full_weights: bool
) -> None:
    folder = base if embeddings == "tied" else untied
    expected = _steps(folder, full_weights, 8, 1)  # eight micro-batches of one row
    packed = _steps(folder, full_weights, 8, 400)
    on_two = [two_ranks.run(_steps, folder, full_weights, 8, tokens)[0] for tokens in (1, 400)]

    for steps in (packed, *on_two):
        assert_equal(steps, expected)


@pytest.mark.parametrize("full_weights", [False, True], ids=["lora", "full"])
def test_a_rank_without_a_row_of_the_step_goes_along(base: Path, two_ranks: Ranks, full_weights: bool) -> None:
    """One row a step: the other rank has nothing to learn of any."""
    first, second = two_ranks.run(_steps, base, full_weights, 1, 400)

    assert_equal(first, _steps(base, full_weights, 1, 400))
    assert second.losses == first.losses
    assert second.rows == first.rows


def assert_equal(steps: Steps, expected: Steps) -> None:
    assert steps.losses == pytest.approx(expected.losses, abs=1e-5)
    assert steps.rows == pytest.approx(expected.rows, abs=1e-5)
    assert steps.gradients.keys() >= expected.gradients.keys() - {"lm_head.weight"}
    for name, gradient in steps.gradients.items():
        torch.testing.assert_close(gradient, expected.gradients[name], rtol=0, atol=1e-6)
    assert_moved_alike(expected.start, steps.weights, expected.weights)
