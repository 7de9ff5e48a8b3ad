"""PostgreSQL crashes again and again while jobs are made and run: what was acknowledged exists, and every job ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from tests.faults.promises import Witness, broken_promises, unrest
from tests.support.artifacts import BASE_ID, publish_base_model
from tests.support.asgi_server import serving
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer
from tests.support.run_tasks import TaskExecutor
from tunesmith_server import application
from tunesmith_server.application import Application, open_core
from tunesmith_server.config import Settings
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.fine_tunes.state import TERMINAL, State
from tunesmith_server.inference_proxy import InferenceProxy

ROWS = b'{"prompt": "Say a.", "completion": "a"}\n' * 10
CLIENTS = 8


# A connection whose server died may be thrown away unclosed by the pool; that is all that is left of it.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("jobs", "restarts"),
    [pytest.param(12, 2), pytest.param(200, 10, marks=[pytest.mark.soak, pytest.mark.timeout(900)])],
)
async def test_nothing_is_lost_when_the_database_crashes(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, restarts: int
) -> None:
    executor = TaskExecutor(slots=8)
    monkeypatch.setattr(application, "_executor", lambda _settings, _signer: executor)
    async with control_plane(tmp_path, postgres.create_database()) as (core, client):
        file_id = await upload(client)
        acknowledged: list[str] = []
        numbers = iter(range(jobs))
        makers = [asyncio.create_task(make_jobs(client, file_id, numbers, acknowledged)) for _ in range(CLIENTS)]
        for restart in range(restarts):
            # Half of the crashes while jobs are made, all of them while jobs run.
            wanted = jobs * (restart + 1) // restarts
            async with asyncio.timeout(300):
                while len(acknowledged) < wanted // 2 + 1 or await ended(core) < wanted // 2:  # noqa: ASYNC110 (a database)
                    await asyncio.sleep(0.05)
            await asyncio.to_thread(postgres.restart)
        await asyncio.gather(*makers)
        async with asyncio.timeout(600):
            while await ended(core) < jobs or await unrest(core):  # noqa: ASYNC110 (a database)
                await asyncio.sleep(0.1)

        assert len(set(acknowledged)) == jobs
        broken = await broken_promises(core, Witness(), acknowledged, lambda job_id: executor.notes[job_id])
        assert not broken, "\n".join(broken)
        async with core.database.read() as session:
            states = set(await session.scalars(select(FineTuneRow.state)))
        assert states == {State.SUCCEEDED}
    gc.collect()  # here and not in a later test, where the same warning would be an error


@asynccontextmanager
async def control_plane(folder: Path, database_url: str) -> AsyncIterator[tuple[Core, httpx.AsyncClient]]:
    """The whole control plane on real sockets, in this process, with a toy base model."""
    catalogue = folder / "base_models.yaml"
    catalogue.write_text(f"- id: {BASE_ID}\n  source: toy\n")
    port, grpc_port = free_ports(2)
    settings = Settings(
        home=folder / "home",
        port=port,
        grpc_port=grpc_port,
        database_url=database_url,
        base_models=catalogue,
        max_concurrent_preflights=8,
        leader_ttl_seconds=3,
    )
    async with open_core(settings) as core:
        await publish_base_model(core)
        made = Application(core, InferenceProxy("", reason_for_none="Inference is off."))
        await made.grpc.start(f"127.0.0.1:{grpc_port}")
        await made.start()
        async with serving(made.http, port) as url:
            key = (folder / "home" / "api_key").read_text().strip()
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(base_url=f"{url}/v1", headers=headers, timeout=60) as client:
                yield core, client
            made.stop_admission()
        await made.grpc.stop(0)
        await made.stop()


async def upload(client: httpx.AsyncClient) -> str:
    answer = await client.post("/files", files={"file": ("rows.jsonl", ROWS)}, data={"purpose": "fine-tune"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def make_jobs(client: httpx.AsyncClient, file_id: str, numbers: Iterator[int], acknowledged: list[str]) -> None:
    """Makes one job after the other and repeats what was refused for the moment."""
    for number in numbers:
        while True:
            answer = await client.post(
                "/fine_tuning/jobs",
                json={"model": BASE_ID, "training_file": file_id},
                headers={"Idempotency-Key": f"job-{number}"},
            )
            if answer.status_code != 503:
                break
            await asyncio.sleep(0.1)
        assert answer.status_code == 200, answer.text
        acknowledged.append(answer.json()["id"])


async def ended(core: Core) -> int:
    """Jobs that have ended; -1 while the database is away."""
    try:
        async with core.database.read() as session:
            query = select(func.count()).select_from(FineTuneRow).where(FineTuneRow.state.in_(TERMINAL))
            return int(await session.scalar(query) or 0)
    except (SQLAlchemyError, OSError):
        return -1
