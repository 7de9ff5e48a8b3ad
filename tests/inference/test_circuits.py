"""Whom it is no use to ask: after failures in a row nobody goes there for a while, then one request tries."""

from __future__ import annotations

import pytest

from tests.support.clock import MovableClock
from tunesmith_inference.circuits import Circuits

HERE, THERE = "http://here", "http://there"


@pytest.fixture
def moving() -> MovableClock:
    return MovableClock(0.0)


@pytest.fixture
def opened(moving: MovableClock) -> Circuits:
    """Three requests to THERE have failed."""
    circuits = Circuits(moving)
    for _ in range(3):
        assert circuits.may_ask(THERE)
        circuits.begin(THERE)
        circuits.failed(THERE)
    return circuits


def test_three_failures_in_a_row_leave_one_out_and_nobody_else(opened: Circuits) -> None:
    assert (opened.may_ask(THERE), opened.may_ask(HERE)) == (False, True)


def test_an_answer_between_failures_begins_the_count_anew(moving: MovableClock) -> None:
    circuits = Circuits(moving)
    for _ in range(2):
        circuits.failed(THERE)
        circuits.failed(THERE)
        circuits.worked(THERE)
    assert circuits.may_ask(THERE)


def test_one_trial_decides(opened: Circuits, moving: MovableClock) -> None:
    moving.advance(5)
    assert opened.may_ask(THERE)
    opened.begin(THERE)
    assert not opened.may_ask(THERE), "one trial at a time"
    opened.failed(THERE)
    assert not opened.may_ask(THERE)
    moving.advance(5)
    opened.begin(THERE)
    opened.worked(THERE)
    assert opened.may_ask(THERE)


def test_who_is_gone_is_forgotten(opened: Circuits) -> None:
    opened.keep_only([HERE])
    assert opened.may_ask(THERE)
