"""Owns one run at MLflow, by its official client.

It must not know the control plane; it lives in a process of its own (courier_program.py).
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

_JOB_TAG = "tunesmith.job_id"
_MAX_METRICS = 1000
"""Of one call; a limit of MLflow."""
_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class MlflowRun:
    """The run that carries the job's tag; opened again it goes on after the last step that the tracker has.

    `last_step` is that step. A step that is told twice is the same both times, which MLflow keeps once.
    """

    def __init__(self, opening: dict[str, Any]) -> None:
        self._client = MlflowClient()
        experiment = self._experiment(opening["target"]["experiment"])
        self.run_id = self._run_of(opening, experiment)
        params = [Param(name, str(value)) for name, value in opening["settings"].items()]
        self._client.log_batch(self.run_id, params=params)
        history = self._client.get_metric_history(self.run_id, "train_loss")
        self.last_step = max((metric.step for metric in history), default=0)
        self.url = _url(experiment, self.run_id)

    def log(self, points: list[dict[str, Any]]) -> None:
        """Returns once the tracker has the steps."""
        metrics = [
            Metric(name, value, point["time"] * 1000, point["step"])
            for point in points
            for name, value in point["measures"].items()
        ]
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _MAX_METRICS])

    def close(self, ending: dict[str, Any]) -> None:
        """Returns once the tracker has everything; the run of a job that only rests stays open."""
        self.log([ending])
        tags = {"tunesmith.status": ending["status"], "tunesmith.model": ending["model"]}
        self._client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items() if value])
        if ending["status"] in _STATUS:
            self._client.set_terminated(self.run_id, _STATUS[ending["status"]], end_time=ending["time"] * 1000)

    def _experiment(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                # Another job may have made it at this moment.
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)

    def _run_of(self, opening: dict[str, Any], experiment: str) -> str:
        job_id = opening["job_id"]
        known = self._client.search_runs([experiment], f"tags.`{_JOB_TAG}` = '{job_id}'", max_results=1)
        if known:
            return str(known[0].info.run_id)
        tags = {_JOB_TAG: job_id, "tunesmith.base_model": opening["base_model"]}
        name = opening["target"]["run_name"] or job_id
        return str(self._client.create_run(experiment, run_name=name, tags=tags).info.run_id)


def _url(experiment: str, run_id: str) -> str | None:
    """Where people see the run, without the credentials that the address of the server may hold."""
    server = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if server.scheme not in ("http", "https"):
        return None
    host = server.netloc.rpartition("@")[2]
    return f"{server.scheme}://{host}{server.path.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
