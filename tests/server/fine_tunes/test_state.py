"""The table of states, read as a graph."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith_server.fine_tunes.state import TERMINAL, TRANSITIONS, State, may_follow, wire_status

states = st.sampled_from(State)


def test_every_state_has_a_row_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {State.VALIDATING_FILES}
    while following := {after for state in reached for after in TRANSITIONS[state]} - reached:
        reached |= following
    assert reached == set(State)


@given(states, states)
def test_nothing_follows_an_end_and_all_else_can_fail_or_be_cancelled(current: State, following: State) -> None:
    if current in TERMINAL:
        assert not may_follow(current, following)
    else:
        assert may_follow(current, State.FAILED)
        assert may_follow(current, State.CANCELLED)


@given(st.lists(states, max_size=12))
def test_a_job_succeeds_only_after_it_ran_or_as_an_import_and_runs_only_after_it_was_queued(
    wishes: list[State],
) -> None:
    path = [State.VALIDATING_FILES]
    for wish in wishes:
        if may_follow(path[-1], wish):
            path.append(wish)
    if State.SUCCEEDED in path:
        assert State.RUNNING in path or set(path[:-1]) == {State.VALIDATING_FILES}
        assert path[-1] is State.SUCCEEDED
    if State.RUNNING in path:
        assert path[path.index(State.RUNNING) - 1] is State.QUEUED


@given(states)
def test_clients_see_only_words_they_know(state: State) -> None:
    openai = {"validating_files", "queued", "running", "succeeded", "failed", "cancelled"}
    assert wire_status(state) in openai | {"pausing", "paused"}
