"""When a waiting job may start."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith_server.scheduling.capacity import Running, Waiting
from tunesmith_server.scheduling.forecast import expected_start

INVENTORY = ("gpu-0", "gpu-1")
JOB = Waiting("me", "a")


def test_a_free_device_is_had_at_once() -> None:
    assert expected_start(JOB, [], [], INVENTORY) == 0.0
    assert expected_start(JOB, [run(0, 90.0)], [], INVENTORY) == 0.0


def test_the_first_run_to_end_gives_its_device() -> None:
    assert expected_start(JOB, [run(0, 90.0), run(1, 40.0)], [], INVENTORY) == 40.0


def test_jobs_ahead_take_their_time() -> None:
    ahead = [Waiting("x", "a", expected_seconds=30.0)]
    assert expected_start(JOB, [run(0, 90.0), run(1, 40.0)], ahead, INVENTORY) == 70.0
    ahead = [Waiting("x", "a", devices=2, expected_seconds=30.0)]
    assert expected_start(JOB, [run(0, 90.0), run(1, 40.0)], ahead, INVENTORY) == 120.0


def test_what_nobody_knows_is_not_guessed() -> None:
    assert expected_start(JOB, [run(0, None), run(1, None)], [], INVENTORY) is None
    assert expected_start(JOB, [], [Waiting("x", "a", devices=2)], INVENTORY) is None
    assert expected_start(Waiting("big", "a", devices=3), [], [], INVENTORY) is None


def test_a_job_that_is_larger_than_the_machine_holds_nobody_up() -> None:
    assert expected_start(JOB, [], [Waiting("big", "a", devices=3)], INVENTORY) == 0.0


@given(st.lists(st.integers(1, 2)), st.integers(0, 100), st.integers(0, 100))
def test_more_jobs_ahead_never_start_it_earlier(sizes: list[int], first: int, second: int) -> None:
    running = [run(0, float(first)), run(1, float(second))]
    ahead = [Waiting(str(number), "a", devices=size, expected_seconds=10.0) for number, size in enumerate(sizes)]
    starts = [expected_start(JOB, running, ahead[:count], INVENTORY) for count in range(len(ahead) + 1)]
    assert starts == sorted(starts, key=lambda start: start or 0.0)


def run(device: int, remaining_seconds: float | None) -> Running:
    """A run on one device."""
    name = str(device)
    return Running(name, name, "a", (INVENTORY[device],), 0.0, remaining_seconds=remaining_seconds)
