"""Which way of computing a run takes, by what its machine has and what became of the attempts before."""

import math

import numpy as np
import pytest

from tunesmith_trainer.base_shapes import BaseShapes
from tunesmith_trainer.config import Facts, Method, Wanted, resolve
from tunesmith_trainer.errors import BadSpec, OutOfMemory
from tunesmith_trainer.example import Example
from tunesmith_trainer.memory_ladder import Ladder, Rung, ladder_of, rungs
from tunesmith_trainer.memory_plan import Plan

GIB = 1 << 30
# Eight thousand million parameters in 32 layers.
LARGE = BaseShapes(
    parameters=8_030_000_000,
    layers=32,
    hidden=4096,
    intermediate=14_336,
    queries=4096,
    keys=1024,
    normed=8192,
    capped_heads=0,
    window=None,
    share_up_to=math.inf,
    vocabulary=128_256,
    linears={
        f"{layer}.{name}": shape
        for layer in range(32)
        for name, shape in {
            "q": (4096, 4096),
            "k": (1024, 4096),
            "v": (1024, 4096),
            "o": (4096, 4096),
            "gate": (14_336, 4096),
            "up": (14_336, 4096),
            "down": (4096, 14_336),
        }.items()
    },
)
RUNGS = [Rung(1024), Rung(512), Rung(512, 15), Rung(512, 30)]
LABELLED = np.arange(500) >= 490
NEEDS = dict(zip(RUNGS, (8, 6, 4, 3), strict=True))


def ladder(*, full_weights: bool = False) -> Ladder:
    return Ladder(RUNGS, lambda rung: Plan({"all": NEEDS[rung] * GIB}), full_weights=full_weights, gpu=False)


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
        gpu=False,
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


def ladder_of_large(
    *, full_weights: bool, gpu: bool = True, main_memory: int = 256, merged: bool = False, ranks: int = 1
) -> Ladder:
    """Of the large model, on rows of 500 tokens."""
    wanted = Wanted(full_weights=full_weights, seed=1, lora_rank=16, batch_size=64)
    config = resolve(wanted, Facts(1000, 500, 10, 4096, "llama", 8192))[0]
    rows = [Example(1, np.zeros(500, np.int32), np.arange(500) >= 250)] * 100
    return ladder_of(
        LARGE,
        config,
        rows,
        rows,
        "bfloat16",
        16_384,
        main_memory=main_memory * GIB,
        gpu=gpu,
        merged=merged,
        ranks=ranks,
    )


@pytest.mark.parametrize(
    ("memory", "starts_with"),
    [
        (139, "packs of 16384 tokens"),
        (24, "packs of 1024 tokens"),
        (16, "packs of 1024 tokens, the base in four bits"),
        (12, "packs of 512 tokens, the base in four bits"),
    ],
)
def test_adapters_of_a_large_model_are_trained_on_what_a_gpu_has(memory: int, starts_with: str) -> None:
    choice = ladder_of_large(full_weights=False).choose(memory * GIB, memory * GIB)

    assert str(choice.rung) == starts_with
    assert choice.need.needed <= memory * GIB * 0.95


def test_the_optimizer_goes_to_main_memory_where_a_gpu_is_too_small_for_it_and_packs_grow_again() -> None:
    chosen = [ladder_of_large(full_weights=True).choose(memory * GIB, memory * GIB).rung for memory in (139, 80, 48)]

    assert [one.offloaded for one in chosen] == [False, True, True]
    assert chosen[1].pack_tokens > chosen[2].pack_tokens


def lowest(steps: Ladder) -> Rung:
    """The one that attempts come to which all run out of memory."""
    choice = steps.choose(1 << 50, 1 << 50)
    failures = 0
    while choice.lower is not None:
        failures += 1
        choice = steps.choose(1 << 50, 1 << 50, failures=failures)
    return choice.rung


def test_what_does_not_help_is_no_rung() -> None:
    assert lowest(ladder_of_large(full_weights=True)).offloaded
    assert not lowest(ladder_of_large(full_weights=True, gpu=False)).offloaded, "it is in main memory already"
    assert not lowest(ladder_of_large(full_weights=True, main_memory=96)).offloaded, "it would have no room there"
    assert not lowest(ladder_of_large(full_weights=True, ranks=2)).offloaded, "devices share it instead"
    assert lowest(ladder_of_large(full_weights=False)).in_four_bits
    assert lowest(ladder_of_large(full_weights=False, gpu=False)).in_four_bits
    assert not lowest(ladder_of_large(full_weights=False, merged=True)).in_four_bits, "they are served in whole weights"


def test_further_rungs_need_less_than_all_before() -> None:
    steps = ladder_of_large(full_weights=False)
    whole, four_bits = (
        [need.needed for rung, need in zip(steps._rungs, steps._needs, strict=True) if rung.in_four_bits is wanted]
        for wanted in (False, True)
    )

    assert four_bits
    assert max(four_bits) < min(whole)


@pytest.mark.parametrize(("method", "least"), [("supervised", 500), ("dpo", 10_000)])
def test_a_row_learnt_answer_by_answer_needs_no_more_than_its_longest_document(method: Method, least: int) -> None:
    """A pair of answers stays together."""
    row = Example(1, np.zeros(10_000, np.int32), np.arange(10_000) % 500 >= 490, tuple(range(500, 10_000, 500)))
    wanted = Wanted(full_weights=False, seed=1, batch_size=4, method=method)
    config = resolve(wanted, Facts(20, 500, 10, 4096, "llama", 8192))[0]
    steps = ladder_of(LARGE, config, [row] * 20, [], "bfloat16", 16_384, main_memory=GIB, gpu=True, merged=False)

    assert min(rung.pack_tokens for rung in steps._rungs) == least


@pytest.mark.parametrize(("prompt", "gpu", "expected"), [(480, False, 1000), (0, False, 512), (480, True, 512)])
def test_long_rows_that_begin_alike_get_packs_with_room_to_share(prompt: int, gpu: bool, expected: int) -> None:
    """Rows of 500 tokens: in packs of 512 each would bring its own prompt."""
    generator = np.random.default_rng(1)
    start = generator.integers(0, 1000, prompt)
    rows = [
        Example(1, np.concatenate([start, generator.integers(0, 1000, 500 - prompt)]).astype(np.int32), LABELLED)
        for _ in range(20)
    ]
    config = resolve(Wanted(full_weights=False, seed=1, batch_size=8), Facts(20, 500, 10, 4096, "llama", 8192))[0]
    steps = ladder_of(LARGE, config, rows, [], "bfloat16", 512, main_memory=256 * GIB, gpu=gpu, merged=False)

    assert steps.choose(1 << 50, 1 << 50).rung == Rung(expected)
