"""Retries by cause."""

from __future__ import annotations

import pytest

from tunesmith_server.training.outcomes import LOST, Cause, Ending, GiveUp, Retry, chosen_exit, decide


@pytest.mark.parametrize(
    ("code", "cause", "name"),
    [
        (0, Cause.TRAINER, "incomplete_run"),
        (64, Cause.USER, "invalid_spec"),
        (65, Cause.USER, "invalid_training_data"),
        (66, Cause.USER, "unsupported_model"),
        (70, Cause.TRAINER, "trainer_defect"),
        (71, Cause.OUT_OF_MEMORY, "out_of_memory"),
        (75, Cause.PREEMPTION, "preempted"),
    ],
)
def test_the_table_of_exit_codes(code: int, cause: Cause, name: str) -> None:
    ending = chosen_exit(code)
    assert ending is not None
    assert (ending.cause, ending.code) == (cause, name)


@pytest.mark.parametrize("code", [1, 2, 127, 137, 139, 143])
def test_other_codes_and_signals_are_nobodys_choice(code: int) -> None:
    assert chosen_exit(code) is None


@pytest.mark.parametrize(
    ("cause", "delays"),
    [
        (Cause.USER, []),
        (Cause.TRAINER, [5]),
        (Cause.INFRASTRUCTURE, [5, 10, 20, 40, 80]),
        (Cause.OUT_OF_MEMORY, [5] * 12),
        (Cause.DAMAGED_CHECKPOINT, [5] * 20),
        (Cause.PREEMPTION, [5] * 20),
    ],
)
def test_each_cause_has_its_number_of_retries(cause: Cause, delays: list[int]) -> None:
    retries: dict[str, int] = {}
    seen = []
    for _ in range(20):
        verdict = decide(Ending(cause, "code", "message"), retries)
        if isinstance(verdict, GiveUp):
            break
        seen.append(verdict.delay_seconds)
        retries = verdict.retries
    assert seen == delays


def test_causes_are_counted_apart() -> None:
    verdict = decide(LOST, {"trainer": 1, "preemption": 9})
    assert verdict == Retry(5, {"trainer": 1, "preemption": 9, "infrastructure": 1})


def test_a_job_that_is_lost_too_often_says_so() -> None:
    verdict = decide(LOST, {"infrastructure": 5})
    assert isinstance(verdict, GiveUp)
    assert verdict.code == "retries_exhausted"
