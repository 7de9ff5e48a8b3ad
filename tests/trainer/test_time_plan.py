"""The expected time: grows with what is multiplied, and shrinks with the machine's speed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tunesmith_trainer.base_shapes import build_empty, read_shapes
from tunesmith_trainer.config import Facts, Wanted, resolve
from tunesmith_trainer.example import Example
from tunesmith_trainer.time_plan import computed_part, expected_seconds

ROWS = [Example(row, np.zeros(100, dtype=np.int32), np.arange(100) >= 60) for row in range(20)]
FACTS = Facts(20, 100, 10, 64, "llama", 512)


def seconds(base: Path, flops: float, *, full: bool = False, passes: int = 2, rows: int = 20) -> float:
    config = resolve(Wanted(full_weights=full, seed=1, n_epochs=passes), replace(FACTS, rows=rows))[0]
    shapes = read_shapes(build_empty(base))
    return expected_seconds(shapes, config, ROWS[:rows], ROWS[:2], flops, gpu=False, pack_tokens=256)


def test_training_full_weights_takes_half_as_long_again(base: Path) -> None:
    start = seconds(base, 1e30)
    ratio = (seconds(base, 1e7, full=True) - start) / (seconds(base, 1e7) - start)
    assert ratio == pytest.approx(1.5, abs=0.1)


def test_twice_the_speed_halves_the_work(base: Path) -> None:
    start = seconds(base, 1e30)
    assert (seconds(base, 1e7) - start) / (seconds(base, 2e7) - start) == pytest.approx(2)


def test_more_rows_and_passes_take_longer(base: Path) -> None:
    assert seconds(base, 1e7, rows=10) < seconds(base, 1e7) < seconds(base, 1e7, passes=3)


def test_between_products_a_faster_processor_does_not_help_but_fewer_tokens_do(base: Path) -> None:
    fewer, more = seconds(base, 1e30, rows=10), seconds(base, 1e30)
    assert seconds(base, 1e33) == pytest.approx(more)
    assert fewer < more


def test_what_rows_share_is_computed_once_a_pack_and_takes_no_time_again(base: Path) -> None:
    config = resolve(Wanted(full_weights=False, seed=1, batch_size=4), FACTS)[0]
    # Rows of the same sixty tokens, then forty that are labelled.
    shapes = read_shapes(build_empty(base))
    parts = {tokens: computed_part(shapes, config, ROWS, tokens, gpu=False) for tokens in (100, 1024)}
    assert parts == {100: 1.0, 1024: pytest.approx((56 + 4 * 44) / 400)}
    assert computed_part(shapes, config, ROWS, 1024, gpu=True) == 1
    assert computed_part(replace(shapes, share_up_to=99), config, ROWS, 1024, gpu=False) == 1

    whole, part = (
        expected_seconds(shapes, config, ROWS, ROWS[:2], 1e7, gpu=False, pack_tokens=256, part=one)
        for one in (1.0, 0.5)
    )
    start = expected_seconds(shapes, config, [], [], 1e7, gpu=False, pack_tokens=256)
    assert part - start == pytest.approx((whole - start) / 2)


def test_an_offloaded_optimizer_takes_longer_by_each_step_and_weight(base: Path) -> None:
    """As from an RTX 4090 with 8 billion weights: some ten seconds a step."""
    config = resolve(Wanted(full_weights=True, seed=1, n_epochs=2), FACTS)[0]
    shapes = read_shapes(build_empty(base))
    there, here = (
        expected_seconds(shapes, config, ROWS, ROWS[:2], 1e14, gpu=True, pack_tokens=256, offloaded=one)
        for one in (True, False)
    )
    each = (there - here) / config.total_steps / shapes.parameters
    assert 8 < each * 8e9 < 14


def test_four_bits_are_made_whole_again_for_every_pack(base: Path) -> None:
    config = resolve(Wanted(full_weights=False, seed=1, n_epochs=2, batch_size=10), FACTS)[0]
    shapes = read_shapes(build_empty(base))

    def more(pack_tokens: int, recomputed_layers: int = 0) -> float:
        whole, coded = (
            expected_seconds(
                shapes,
                config,
                ROWS,
                ROWS[:2],
                1e9,
                gpu=True,
                pack_tokens=pack_tokens,
                recomputed_layers=recomputed_layers,
                in_four_bits=one,
            )
            for one in (False, True)
        )
        return coded - whole

    assert more(100) > 0
    assert more(100) == pytest.approx(5 * more(500))
    assert more(1000) == pytest.approx(more(2000))  # there is one in each step
    assert more(100, shapes.layers) == pytest.approx(1.5 * more(100))
