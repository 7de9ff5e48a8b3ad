"""What is done about an attempt, for everything that the two witnesses can say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.executor import GONE, RUNNING, UNREACHABLE, exited
from tunesmith_server.executors.base import Observation, RunState
from tunesmith_server.scheduling.verdicts import EndAttempt, Facts, LaunchAgain, StopRun, Wait, judge
from tunesmith_server.training.outcomes import LOST, YIELDED

NOW = 1000.0
HEALTHY = Facts(
    now=NOW,
    observation=RUNNING,
    owns_job=True,
    cancel_requested=False,
    asked_to_yield=False,
    heard_from=True,
    lease_expires_at=NOW + 60,
    asked_to_end_since=NOW,
    unreachable_since=None,
    unreachable_limit=300,
)
EXPIRED = replace(HEALTHY, lease_expires_at=NOW - 1)

observations = st.one_of(
    st.sampled_from([RUNNING, GONE, UNREACHABLE, Observation(RunState.PENDING)]), st.integers(0, 255).map(exited)
)
facts = st.builds(
    Facts,
    now=st.just(NOW),
    observation=observations,
    owns_job=st.booleans(),
    cancel_requested=st.booleans(),
    asked_to_yield=st.booleans(),
    heard_from=st.booleans(),
    lease_expires_at=st.floats(NOW - 1000, NOW + 1000),
    asked_to_end_since=st.floats(NOW - 100, NOW),
    unreachable_since=st.none() | st.floats(NOW - 1000, NOW),
    unreachable_limit=st.just(300.0),
)


@given(facts)
def test_a_run_is_lost_only_on_two_witnesses(case: Facts) -> None:
    verdict = judge(case)
    if isinstance(verdict, EndAttempt) and verdict.ending is LOST and not case.cancel_requested:
        assert case.now >= case.lease_expires_at
        assert case.observation.state in (RunState.EXITED, RunState.GONE) or (
            case.observation.state is RunState.UNREACHABLE
            and case.unreachable_since is not None
            and case.now - case.unreachable_since > case.unreachable_limit
        )


@given(facts)
def test_a_run_that_runs_never_ends_its_attempt(case: Facts) -> None:
    if case.observation.state is RunState.RUNNING:
        assert isinstance(judge(case), Wait | StopRun)


@given(facts)
def test_an_attempt_without_a_job_settles_nothing(case: Facts) -> None:
    verdict = judge(replace(case, owns_job=False))
    assert not isinstance(verdict, LaunchAgain)
    assert not isinstance(verdict, EndAttempt) or verdict.ending is None


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        (HEALTHY, Wait()),
        (EXPIRED, Wait(silent_seconds=1.0)),
        (replace(HEALTHY, lease_expires_at=NOW - 301), StopRun()),
        (replace(HEALTHY, observation=GONE, heard_from=False), LaunchAgain()),
        (replace(HEALTHY, observation=GONE), Wait()),
        (replace(EXPIRED, observation=GONE), EndAttempt(LOST, "gone")),
        (replace(HEALTHY, observation=exited(137)), Wait()),
        (replace(EXPIRED, observation=exited(137)), EndAttempt(LOST, "exited")),
        (replace(EXPIRED, observation=UNREACHABLE), Wait()),
        (replace(EXPIRED, observation=UNREACHABLE, unreachable_since=NOW - 300), Wait()),
        (
            replace(EXPIRED, observation=UNREACHABLE, unreachable_since=NOW - 301),
            EndAttempt(LOST, "unreachable"),
        ),
        (replace(HEALTHY, observation=UNREACHABLE, unreachable_since=NOW - 301), Wait()),
        (replace(HEALTHY, owns_job=False), Wait()),
        (replace(HEALTHY, owns_job=False, asked_to_end_since=NOW - 31), StopRun()),
        (replace(HEALTHY, owns_job=False, observation=exited(0)), EndAttempt(None, "exited")),
        (replace(HEALTHY, cancel_requested=True, asked_to_end_since=NOW - 31), StopRun()),
        (replace(HEALTHY, cancel_requested=True, observation=GONE), EndAttempt(LOST, "gone")),
        (replace(HEALTHY, asked_to_yield=True, asked_to_end_since=NOW - 600), Wait()),
        (replace(HEALTHY, asked_to_yield=True, asked_to_end_since=NOW - 601), StopRun()),
        (replace(HEALTHY, asked_to_yield=True, observation=exited(143)), EndAttempt(YIELDED, "exited")),
        (replace(EXPIRED, observation=Observation(RunState.PENDING)), Wait()),
    ],
)
def test_the_cases_by_name(case: Facts, verdict: object) -> None:
    assert judge(case) == verdict


@pytest.mark.parametrize("code", [0, 64, 65, 66, 70, 71, 75])
def test_a_run_that_chose_its_exit_code_is_believed_at_once(code: int) -> None:
    verdict = judge(replace(HEALTHY, observation=exited(code)))
    assert isinstance(verdict, EndAttempt)
    assert verdict.ending is not LOST
