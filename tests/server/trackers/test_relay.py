"""Trackers hear of every step once: while a job runs, after a restart, and after having been away."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.trackers.conftest import MLFLOW, WANDB, Tracked
from tests.support.clock import MovableClock
from tests.support.wandb_folder import read_offline_run
from tunesmith_server.trackers.relay import TrackerRelay

# MLflow's own tables are declared in a way that SQLAlchemy 2.1 frowns on.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
AWAY = "MLflow does not take this job's metrics now"


async def test_both_trackers_hear_of_a_job_from_its_first_step_to_its_end(tracked: Tracked, tmp_path: Path) -> None:
    identity = await tracked.platform.start_training(integrations=[WANDB, MLFLOW])
    await tracked.report(identity, 1, 2)
    await tracked.until(lambda: len(tracked.told()["steps"]) == 2)  # it is told while the job runs
    while not all(run.opened_at for run in await tracked.left()):
        await tracked.relayed()
    await tracked.report(identity, 4)
    await tracked.end(identity)
    await tracked.relayed()

    losses = [(1, 1.0), (2, 0.5), (4, 0.25)]
    told = tracked.told()
    assert told["steps"] == losses
    assert (told["status"], told["name"], told["tags"]["tunesmith.job_id"]) == ("FAILED", "first try", identity.job_id)
    kept = read_offline_run(tmp_path / "home" / "trackers" / identity.job_id)
    assert [(step["_step"], step["train_loss"]) for step in kept.steps] == losses
    assert (kept.run.run_id, kept.run.project, kept.exit_code) == (identity.job_id, "tickets", 1)
    said = [line for line in await tracked.platform.messages(identity.job_id) if "follows this job" in line]
    assert len(said) == 2
    assert await tracked.left() == []


async def test_another_relay_goes_on_where_one_was_killed(tracked: Tracked) -> None:
    identity = await tracked.platform.start_training(integrations=[MLFLOW])
    await tracked.report(identity, 1, 2)
    await tracked.until(lambda: len(tracked.told()["steps"]) == 2)
    await tracked.relay.stop()
    await tracked.report(identity, 3, 4)

    tracked.relay = TrackerRelay(tracked.platform.core, lambda: True)
    await tracked.until(lambda: len(tracked.told()["steps"]) > 2)
    await tracked.end(identity)
    await tracked.relayed()

    assert [step for step, _ in tracked.told()["steps"]] == [1, 2, 3, 4]
    said = [line for line in await tracked.platform.messages(identity.job_id) if "follows this job" in line]
    assert len(said) == 1


async def test_a_tracker_that_is_away_is_named_once_and_told_later(
    tracked: Tracked, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hidden@127.0.0.1:9")
    identity = await tracked.platform.start_training(integrations=[MLFLOW])
    await tracked.report(identity, 1)
    await tracked.relayed()
    [put_off] = await tracked.left()
    assert (put_off.failures, put_off.not_before) == (1, clock() + 30)
    clock.advance(30)
    await tracked.relayed()
    [put_off] = await tracked.left()
    assert (put_off.failures, put_off.not_before) == (2, clock() + 60)
    lines = await tracked.platform.messages(identity.job_id)
    assert sum(line.startswith(AWAY) for line in lines) == 1
    assert "hidden" not in "".join(lines)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.mlflow_uri)
    await tracked.report(identity, 2)
    await tracked.end(identity)
    clock.advance(60)
    await tracked.relayed()

    assert [step for step, _ in tracked.told()["steps"]] == [1, 2]
    assert await tracked.left() == []


async def test_a_tracker_that_stays_away_is_given_up_after_two_days(
    tracked: Tracked, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    identity = await tracked.platform.start_training(integrations=[MLFLOW])
    await tracked.report(identity, 1)
    await tracked.end(identity)
    await tracked.relayed()
    assert len(await tracked.left()) == 1
    clock.advance(3 * 86400)
    await tracked.relayed()
    assert await tracked.left() == []


async def test_a_job_that_never_trained_is_told_to_nobody(tracked: Tracked) -> None:
    identity = await tracked.platform.start_preflight(integrations=[MLFLOW])
    await tracked.relayed()
    assert len(await tracked.left()) == 1  # it may still train
    await tracked.end(identity)
    await tracked.relayed()
    assert (await tracked.left(), tracked.told()["steps"]) == ([], [])


async def test_only_the_leader_speaks(tracked: Tracked) -> None:
    tracked.relay = TrackerRelay(tracked.platform.core, lambda: False)
    identity = await tracked.platform.start_training(integrations=[MLFLOW])
    await tracked.report(identity, 1)
    await tracked.end(identity)
    await tracked.relayed()
    assert len(await tracked.left()) == 1
