"""When a job's time is used up, and how much a resumed one gets."""

from __future__ import annotations

import pytest

from tunesmith_server.training.limits import Limit, Spent, used_up

NOTHING = Spent(0.0, 0.0)


@pytest.mark.parametrize(
    ("before", "live", "reached"),
    [
        (0.0, 99.0, False),
        (0.0, 100.0, True),
        (60.0, 39.0, False),
        (60.0, 40.0, True),
        (103.0, 90.0, False),
        (103.0, 97.0, True),
    ],
)
def test_a_limit_counts_all_attempts_and_is_granted_again_by_each_start_after_it(
    before: float, live: float, reached: bool
) -> None:
    limit = used_up(Spent(before, 0.0), Spent(live, 0.0), 100, None)
    assert limit == (Limit("max_run_seconds", 100, before + live) if reached else None)


def test_devices_have_a_limit_of_their_own() -> None:
    live = Spent(50.0, 200.0)
    assert used_up(NOTHING, live, 100, 200) == Limit("max_device_seconds", 200, 200.0)
    assert used_up(NOTHING, live, None, None) is None
