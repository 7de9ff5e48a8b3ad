"""Owns jobs for tests: a project with files, a base model, and jobs moved to where a test needs them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.artifacts import BASE_ID, publish_base_model
from tests.support.executor import ScriptedExecutor
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity, Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import AttemptRow, FileRow, FineTuneRow, ProjectRow
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.history import HistoryService
from tunesmith_server.fine_tunes.schemas import CreateFineTune
from tunesmith_server.fine_tunes.service import FineTunesService
from tunesmith_server.ids import new_id
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.scheduling import repository as scheduling
from tunesmith_server.scheduling.outlook import Outlook
from tunesmith_server.scheduling.scheduler import Scheduler
from tunesmith_server.training.service import TrainingService

PRINCIPAL = Principal(project_id="default", key_id="key-1")


@dataclass
class Platform:
    """A core with a project, a base model and files, the services over it, and an executor that obeys the test."""

    core: Core
    training_file: str
    validation_file: str
    fine_tunes: FineTunesService
    history: HistoryService
    training: TrainingService
    executor: ScriptedExecutor
    scheduler: Scheduler

    def request(self, **changes: Any) -> CreateFineTune:
        """A create body that is accepted."""
        return CreateFineTune.model_validate({"model": BASE_ID, "training_file": self.training_file} | changes)

    async def create(self, **changes: Any) -> str:
        """Makes a job and returns its id."""
        return (await self.fine_tunes.create(PRINCIPAL, self.request(**changes))).id

    async def start_preflight(self, **changes: Any) -> AttemptIdentity:
        """Makes a job and has its preflight claimed."""
        return await self.claim(await self.create(**changes))

    async def start_training(self, **changes: Any) -> AttemptIdentity:
        """Makes a job and takes it through its preflight to a claimed training run."""
        identity = await self.start_preflight(**changes)
        await self.training.complete_preflight(identity, preflight_report())
        await self.end_run(identity)
        return await self.claim(identity.job_id)

    async def claim(self, job_id: str) -> AttemptIdentity:
        """Has the scheduler claim what waits and returns the job's new attempt."""
        await self.scheduler.run_once()
        identity = self.executor.identity_of(self.core.signer, job_id)
        assert identity is not None, "the job was not claimed"
        return identity

    async def end_run(self, identity: AttemptIdentity) -> None:
        """Says that the run of the attempt is over, as the reconciler would."""
        self.executor.launches.pop(identity.attempt_id)
        async with self.core.database.write() as session:
            await scheduling.end_attempt(session, identity.attempt_id, cause="exited", exit_code=0, now=0)

    async def row(self, job_id: str) -> FineTuneRow:
        """The job as it is stored."""
        async with self.core.database.read() as session:
            job = await jobs.get(session, job_id)
        assert job is not None
        return job

    async def attempt(self, attempt_id: str) -> AttemptRow:
        """The attempt as it is stored."""
        async with self.core.database.read() as session:
            attempt = await session.get(AttemptRow, attempt_id)
        assert attempt is not None
        return attempt

    async def messages(self, job_id: str) -> list[str]:
        """Texts of the job's history, oldest first."""
        page = await self.history.list_events(PRINCIPAL, job_id, limit=100)
        return [event.message for event in reversed(page.data)]


async def make_platform(core: Core) -> Platform:
    """A platform in which a job can be made at once."""
    await publish_base_model(core, "gpt-4o-mini-2024-07-18")
    async with core.database.write() as session:
        session.add(ProjectRow(id=PRINCIPAL.project_id, created_at=int(core.clock())))
        session.add(ProjectRow(id="other", created_at=int(core.clock())))
    executor = ScriptedExecutor()
    registry = RegistryService(core)
    return Platform(
        core=core,
        training_file=await store_file(core),
        validation_file=await store_file(core, rows=2),
        fine_tunes=FineTunesService(core, outlook=Outlook(core, executor)),
        history=HistoryService(core),
        training=TrainingService(core, registry),
        executor=executor,
        scheduler=Scheduler(core, executor, lambda: True),
    )


@pytest.fixture
async def platform(core: Core) -> Platform:
    """A platform on SQLite and a folder."""
    return await make_platform(core)


@pytest.fixture
async def each_platform(each_core: Core) -> Platform:
    """A platform of each kind in turn."""
    return await make_platform(each_core)


async def store_file(core: Core, project_id: str = "default", rows: int = 10, **changes: Any) -> str:
    """Stores a dataset and returns its id."""
    content = b'{"prompt":"a","completion":"b"}\n' * rows
    file_id = new_id("file-")
    key = f"files/{project_id}/{file_id}"
    await core.store.put_bytes(key, content)
    values: dict[str, Any] = {
        "id": file_id,
        "project_id": project_id,
        "filename": "rows.jsonl",
        "purpose": "fine-tune",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "status": "processed",
        "rows": rows,
        "storage_key": key,
        "created_at": int(core.clock()),
    }
    async with core.database.write() as session:
        session.add(FileRow(**(values | changes)))
    return file_id


def preflight_report(**changes: Any) -> pb.CompletePreflightRequest:
    """What a preflight run of a LoRA job reports: 3 passes of 2 steps."""
    numbers = {
        "n_epochs": 3,
        "batch_size": 5,
        "learning_rate_multiplier": 1.0,
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "context_length": 64,
    }
    return pb.CompletePreflightRequest(
        hyperparameters=pb.Hyperparameters(**(numbers | changes)),
        learning_rate=1e-4,
        rows=10,
        tokens=200,
        labelled_tokens=50,
        total_steps=6,
        report=pb.PreflightReport(resolved=[pb.Resolved(name="n_epochs", value="3", reason="10 rows")]),
    )


def step_report(step: int, loss: float = 1.5, **measures: float) -> pb.StepMetrics:
    """Measures of one optimizer step."""
    return pb.StepMetrics(
        step=step, train_loss=loss, train_mean_token_accuracy=0.5, tokens=100, seconds=1.0, **measures
    )
