"""MLflow keeps each step once, however often it is told, and the end of a job as its own words have it."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tunesmith_server.trackers.mlflow_run import MlflowRun, _url

# MLflow's own tables are declared in a way that SQLAlchemy 2.1 frowns on.
pytestmark = [
    pytest.mark.usefixtures("mlflow_uri"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

OPENING: dict[str, Any] = {
    "tracker": "mlflow",
    "job_id": "ftjob-1",
    "base_model": "toy",
    "target": {"experiment": "e", "run_name": None},
    "settings": {"seed": 7},
}
POINTS = [{"step": step, "time": 1000 + step, "measures": {"train_loss": 1 / step}} for step in (1, 2)]
ENDING = {"status": "succeeded", "step": 2, "time": 2000, "model": "ft:toy", "measures": {"evaluation/base/loss": 2.0}}


def test_a_run_is_found_again_with_its_last_step_and_steps_told_twice_are_kept_once() -> None:
    first = MlflowRun(OPENING)
    first.log(POINTS)
    second = MlflowRun(OPENING)
    second.log(POINTS)
    second.close(ENDING)

    assert (first.run_id, first.last_step, second.last_step) == (second.run_id, 0, 2)
    client = MlflowClient()
    assert [metric.step for metric in client.get_metric_history(first.run_id, "train_loss")] == [1, 2]
    run = client.get_run(first.run_id)
    assert (run.info.status, run.info.run_name, run.info.end_time) == ("FINISHED", "ftjob-1", 2_000_000)
    assert (run.data.params, run.data.tags["tunesmith.model"]) == ({"seed": "7"}, "ft:toy")
    assert run.data.metrics["evaluation/base/loss"] == 2.0


def test_the_run_of_a_job_that_rests_stays_open() -> None:
    run = MlflowRun(OPENING)
    run.close({**ENDING, "status": "paused", "model": None, "measures": {}})
    assert MlflowClient().get_run(run.run_id).info.status == "RUNNING"


def test_the_place_to_see_a_run_shows_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _url("1", "r") is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:hidden@mlflow.example:8443/base/")
    assert _url("1", "r") == "https://mlflow.example:8443/base/#/experiments/1/runs/r"
