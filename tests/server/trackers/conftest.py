"""Owns trackers for tests: MLflow in a database file, Weights & Biases offline, and jobs that name them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from sqlalchemy import select

from tests.support.clock import MovableClock
from tests.support.core import open_core
from tests.support.factories import Platform, make_platform, step_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import TrackedRunRow
from tunesmith_server.trackers.relay import TrackerRelay

WANDB = {"type": "wandb", "wandb": {"project": "tickets", "tags": ["mine"]}}
MLFLOW = {"type": "mlflow", "mlflow": {"experiment": "tickets", "run_name": "first try"}}


@dataclass
class Tracked:
    """A platform whose installation has both trackers, and a relay to them."""

    platform: Platform
    relay: TrackerRelay
    mlflow_uri: str

    async def report(self, identity: AttemptIdentity, *steps: int) -> None:
        """The run measures these steps, each with a loss of 1/step."""
        metrics = [step_report(step, 1 / step, learning_rate=1e-4) for step in steps]
        beat = pb.HeartbeatRequest(sequence=steps[-1], phase="training", step=steps[-1], total_steps=6, metrics=metrics)
        await self.platform.training.heartbeat(identity, beat)

    async def end(self, identity: AttemptIdentity) -> None:
        """The run says that its user is to blame, so that the job fails for good."""
        failure = pb.Failure(code="loss_not_finite", message="The loss is no number.")
        await self.platform.training.fail_run(
            identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_USER, failures=[failure])
        )

    async def relayed(self) -> None:
        """A pass, and all that it started, to its end."""
        await self.relay.run_once()
        await self.relay.idle()

    async def left(self) -> list[TrackedRunRow]:
        """What trackers are still to hear."""
        async with self.platform.core.database.read() as session:
            return list(await session.scalars(select(TrackedRunRow)))

    async def until(self, condition: Callable[[], Any]) -> None:
        """Returns once the condition holds; passes go on meanwhile."""
        while not condition():
            await self.relay.run_once()
            await asyncio.sleep(0.05)

    def told(self) -> dict[str, Any]:
        """The only run at MLflow: status, params, tags and the steps of its loss."""
        client = MlflowClient(self.mlflow_uri)
        experiment = client.get_experiment_by_name("tickets")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        if not runs:
            return {"status": "", "steps": []}
        [run] = runs
        history = client.get_metric_history(run.info.run_id, "train_loss")
        return {
            "status": run.info.status,
            "name": run.info.run_name,
            "params": run.data.params,
            "tags": run.data.tags,
            "metrics": run.data.metrics,
            "steps": [(metric.step, metric.value) for metric in sorted(history, key=lambda each: each.step)],
        }


@pytest.fixture(scope="session")
def mlflow_image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database file with MLflow's tables, made once: its migrations take seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    program = "import sys; from mlflow.tracking import MlflowClient; MlflowClient(sys.argv[1]).search_experiments()"
    subprocess.run([sys.executable, "-c", program, f"sqlite:///{path}"], check=True, capture_output=True)
    return path.read_bytes()


@pytest.fixture
def mlflow_uri(tmp_path: Path, mlflow_image: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow in a database file, set as an operator sets it."""
    (tmp_path / "mlflow.db").write_bytes(mlflow_image)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
async def tracked(
    tmp_path: Path, clock: MovableClock, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Tracked]:
    """An installation with both trackers, on SQLite and a folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    async with open_core(tmp_path / "home", clock) as core:
        relay = TrackerRelay(core, lambda: True)
        yield Tracked(await make_platform(core), relay, mlflow_uri)
        await relay.stop()
