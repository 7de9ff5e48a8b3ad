"""Who may start now."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith_server.scheduling.capacity import PREFLIGHTS, RunKind, Waiting, pick

kinds = st.sampled_from(RunKind)


@given(st.lists(kinds, max_size=8), st.lists(kinds, max_size=4), st.integers(1, 4))
def test_first_come_first_served_within_the_limits(
    waiting_kinds: list[RunKind], live: list[RunKind], limit: int
) -> None:
    waiting = [Waiting(f"ftjob-{number}", kind) for number, kind in enumerate(waiting_kinds)]
    picked = pick(waiting, live, limit)
    for kind, most in ((RunKind.PREFLIGHT, PREFLIGHTS), (RunKind.TRAINING, limit)):
        of_kind = [job for job in waiting if job.kind is kind]
        room = max(most - live.count(kind), 0)
        assert [job for job in picked if job.kind is kind] == of_kind[:room]
