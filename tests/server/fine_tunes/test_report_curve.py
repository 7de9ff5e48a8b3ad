"""The curve stays within its drawing for any losses, and within a bounded number of points."""

from __future__ import annotations

import re

import pytest

from tunesmith_server.fine_tunes.report_curve import draw


@pytest.mark.parametrize("train", [[(1, 0.0)], [(1, 1e-12), (2, 0.0)], [(step, 1e6 / step) for step in range(1, 50)]])
def test_every_point_lies_inside(train: list[tuple[int, float]]) -> None:
    drawn = draw(train, train[:1], len(train))

    points = [
        tuple(map(float, pair.split(","))) for line in re.findall(r'points="([^"]*)"', drawn) for pair in line.split()
    ]
    assert len(points) == 2 * len(train) + 1
    assert all(0 <= x <= 1000 and 0 <= y <= 320 for x, y in points)


def test_a_long_run_is_thinned_to_its_last_step() -> None:
    drawn = draw([(step, 1.0) for step in range(1, 100_001)], [], 100_001)

    [line, *_] = re.findall(r'points="([^"]*)"', drawn)
    assert len(line.split()) == 1000
    assert line.split()[-1].startswith("986.0,")
    assert "Drawn are 1,000 of 100,001 training steps and 0 of 0 validation measurements." in drawn


def test_a_curve_that_shows_all_says_nothing_of_it() -> None:
    train = [(step, 1.0) for step in range(1, 1001)]
    assert "Drawn are" not in draw(train, train, len(train))
    assert "Drawn are" in draw(train, train, len(train) + 1)


def test_nothing_to_draw_is_said() -> None:
    assert draw([], [], 0) == "<p>No steps so far.</p>"
