"""Which way of computing a run takes, by what its machine has and what became of the attempts before."""

import pytest

from tunesmith_trainer.errors import BadSpec, OutOfMemory
from tunesmith_trainer.memory_ladder import Ladder, Rung, rungs
from tunesmith_trainer.memory_plan import Plan

GIB = 1 << 30
RUNGS = [Rung(1024), Rung(512), Rung(512, 15), Rung(512, 30)]
NEEDS = dict(zip(RUNGS, (8, 6, 4, 3), strict=True))


def ladder(*, full_weights: bool = False) -> Ladder:
    return Ladder(RUNGS, lambda rung: Plan({"all": NEEDS[rung] * GIB}), full_weights=full_weights)


@pytest.mark.parametrize(
    ("pack_tokens", "longest", "layers", "expected"),
    [
        (1024, 100, 30, [Rung(1024), Rung(512), Rung(256), Rung(256, 15), Rung(256, 30)]),
        (1024, 400, 3, [Rung(1024), Rung(512), Rung(400), Rung(400, 2), Rung(400, 3)]),
        (1024, 1024, 2, [Rung(1024), Rung(1024, 1), Rung(1024, 2)]),
        (1024, 5000, 1, [Rung(1024), Rung(1024, 1)]),  # a row that is longer than a pack travels alone as it is
    ],
)
def test_packs_are_halved_down_to_the_longest_row_then_layers_are_computed_twice(
    pack_tokens: int, longest: int, layers: int, expected: list[Rung]
) -> None:
    assert rungs(pack_tokens, longest, layers) == expected


@pytest.mark.parametrize(
    ("available", "expected"),
    [(9.0, RUNGS[0]), (8.0, RUNGS[1]), (5.0, RUNGS[2]), (3.4, RUNGS[3]), (1.0, RUNGS[3])],
)
def test_the_first_rung_that_fits_into_what_is_free_with_something_to_spare(available: float, expected: Rung) -> None:
    assert ladder().choose(int(available * GIB), 64 * GIB).rung == expected


def test_the_choice_says_why() -> None:
    chosen = ladder().choose(5 * GIB, 64 * GIB)

    assert chosen.reason == "4.0 GiB of 5.0 GiB free are needed, packs of 512 tokens would need 6.0 GiB"
    assert str(chosen.rung) == "packs of 512 tokens, 15 layers computed twice"
    assert chosen.lower == RUNGS[3]
    assert "nothing needs less" in ladder().choose(GIB, 64 * GIB).reason


def test_where_nothing_fits_and_lower_rungs_need_the_same_the_fastest_is_taken() -> None:
    same = Ladder(
        RUNGS,
        lambda rung: Plan({"all": min(NEEDS[rung], 6) * GIB if rung == RUNGS[0] else 6 * GIB}),
        full_weights=False,
    )
    assert same.choose(GIB, 64 * GIB).rung == RUNGS[0]


def test_a_resumed_run_stays_where_it_was_whatever_is_free() -> None:
    for available in (1, 64):
        assert ladder().choose(available * GIB, 64 * GIB, kept=RUNGS[1]).rung == RUNGS[1]


def test_a_run_resumed_on_a_smaller_machine_or_from_another_ladder_chooses_anew() -> None:
    assert ladder().choose(5 * GIB, 5 * GIB, kept=RUNGS[0]).rung == RUNGS[2]
    assert ladder().choose(64 * GIB, 64 * GIB, kept=Rung(16_384)).rung == RUNGS[0]


def test_each_attempt_that_ran_out_of_memory_leads_one_rung_down() -> None:
    below = [ladder().choose(64 * GIB, 64 * GIB, failures=failures).rung for failures in range(4)]
    assert below == RUNGS
    assert ladder().choose(64 * GIB, 64 * GIB, kept=RUNGS[1], failures=1).rung == RUNGS[2]


@pytest.mark.parametrize(("full_weights", "helps"), [(True, "training.weights lora"), (False, "a smaller lora_rank")])
def test_at_the_end_of_the_ladder_the_user_is_told_what_helps(*, full_weights: bool, helps: str) -> None:
    with pytest.raises(BadSpec, match=helps) as raised:
        ladder(full_weights=full_weights).choose(64 * GIB, 64 * GIB, failures=4)
    assert raised.value.problems[0].code == "out_of_memory"


def test_running_out_of_memory_names_the_next_rung_while_there_is_one() -> None:
    steps = ladder()
    first, last = (steps.choose(64 * GIB, 64 * GIB, failures=failures) for failures in (0, 3))

    higher, lowest = steps.out_of_memory(first), steps.out_of_memory(last)
    assert isinstance(higher, OutOfMemory)
    assert "the next attempt takes packs of 512 tokens" in str(higher)
    assert isinstance(lowest, BadSpec)
    assert {each.problems[0].code for each in (higher, lowest)} == {"out_of_memory"}
