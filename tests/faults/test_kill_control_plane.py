"""kill -9 of the control plane at every named point: nothing is lost, nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.scenarios import SCENARIOS, Scenario, follow_job, run_job
from tests.faults.toy_platform import ToyPlatform, unanswered
from tests.support.fake_trainer import STEPS

CHAIN = (
    "create.written",
    "executor.process_started",
    "preflight.writing",
    "heartbeat.written:2",
    "checkpoint.written",
    "success.writing",
    "ending.written",
)
"""One point after the other on the way of one job."""
CASES = [
    pytest.param(name, scenario, id=f"{name}-{scenario.act.__name__}-{scenario.times}")
    for name, scenarios in SCENARIOS.items()
    for scenario in scenarios
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyPlatform]:
    """One platform for all points: what ended under an earlier one must stay as it is under all later ones."""
    made = ToyPlatform(tmp_path_factory.mktemp("shared"))
    yield made
    made.close()


@pytest.mark.timeout(240)
def test_a_job_survives_a_death_at_every_step_of_its_way(shared: ToyPlatform) -> None:
    for point in CHAIN:
        shared.start(failpoint=point)
        with unanswered():
            run_job(shared, "chain")
        shared.wait_until_dead()
    shared.start()
    run_job(shared, "chain")
    shared.settle()
    assert shared.server.job(shared.jobs["chain"])["status"] == "succeeded"
    shared.check()
    shared.server.kill()


@pytest.mark.soak
@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_nothing_is_lost_or_done_twice(
    shared: ToyPlatform, request: pytest.FixtureRequest, name: str, scenario: Scenario
) -> None:
    key = request.node.callspec.id
    try:
        shared.start(failpoint=f"{name}:{scenario.times}")
        with unanswered():
            scenario.act(shared, key)
        shared.wait_until_dead()
        shared.start()
        scenario.act(shared, key)
        shared.settle()
        job = shared.server.job(shared.jobs[key])
        assert job["status"] == scenario.status, job["error"]
        if shared.receiver is not None:
            heard = shared.receiver.heard[job["id"], f"fine_tuning.job.{scenario.status}"]
            assert len(heard) == 1, "news arrive, and as one message however often it is sent"
        if scenario.act is follow_job:
            assert shared.tracked_steps(job["id"]) == list(range(1, STEPS + 1))
        assert sorted(shared.captured()) == sorted(shared.captures)
        shared.check()
    finally:
        shared.server.kill()
