"""What REST tests cannot reach: deletion under use, and bytes that are gone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import update

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import BaseModelRow, FileRow, FineTuneRow, ProjectRow
from tunesmith_server.errors import ConflictError, NotFoundError
from tunesmith_server.files.service import FilesService
from tunesmith_server.fine_tunes.state import TERMINAL, State

ALICE = Principal(project_id="alice", key_id="key_1")
ROW = b'{"prompt": "2+2=", "completion": "4"}\n'


async def stream(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture
async def service(each_core: Core) -> FilesService:
    async with each_core.database.write() as session:
        session.add(ProjectRow(id="alice", created_at=0))
    return FilesService(each_core)


async def upload(service: FilesService) -> FileRow:
    return await service.create(ALICE, filename="rows.jsonl", purpose="fine-tune", chunks=stream(ROW * 3))


async def set_state(core: Core, state: State) -> None:
    async with core.database.write() as session:
        await session.execute(update(FineTuneRow).values(state=state.value))


async def add_job(core: Core, file_id: str) -> None:
    base = BaseModelRow(id="base", source="", aliases=[], state="ready", created_at=0, version=1)
    job = FineTuneRow(
        id="ftjob-1",
        project_id="alice",
        state="queued",
        epoch=0,
        cancel_requested=False,
        not_before=0.0,
        retries={},
        base_model_id="base",
        training_file_id="file-other",
        validation_file_id=file_id,
        method="supervised",
        name_id="12345678",
        seed=1,
        requested={},
        last_sequence=0,
        event_count=0,
        result_file_ids=[],
        position=1,
        created_at=0,
    )
    other = FileRow(
        id="file-other",
        project_id="alice",
        filename="",
        purpose="fine-tune",
        bytes=0,
        sha256="",
        status="processed",
        storage_key="files/alice/file-other",
        created_at=0,
    )
    async with core.database.write() as session:
        session.add_all([base, other])
        await session.flush()
        session.add(job)


async def test_rows_are_counted_for_the_job_that_will_use_them(service: FilesService) -> None:
    assert (await upload(service)).rows == 3


async def test_a_file_that_a_job_needs_cannot_be_deleted(service: FilesService, each_core: Core) -> None:
    row = await upload(service)
    await add_job(each_core, row.id)
    for state in [state for state in State if state not in TERMINAL]:
        await set_state(each_core, state)
        with pytest.raises(ConflictError) as raised:
            await service.delete(ALICE, row.id)
        assert raised.value.code == "file_in_use"
        assert await each_core.store.size(row.storage_key) == len(ROW) * 3

    await set_state(each_core, State.FAILED)
    await service.delete(ALICE, row.id)
    with pytest.raises(NotFoundError):
        await service.delete(ALICE, row.id)
    assert await each_core.store.size(row.storage_key) is None


async def test_a_cancelled_job_holds_no_file_while_its_run_stops(service: FilesService, each_core: Core) -> None:
    row = await upload(service)
    await add_job(each_core, row.id)
    async with each_core.database.write() as session:
        await session.execute(update(FineTuneRow).values(state=State.RUNNING.value, cancel_requested=True))
    await service.delete(ALICE, row.id)
    assert await each_core.store.size(row.storage_key) is None


async def test_lost_content_is_told(service: FilesService, each_core: Core) -> None:
    row = await upload(service)
    await each_core.store.delete(row.storage_key)
    with pytest.raises(NotFoundError) as raised:
        await service.open(ALICE, row.id)
    assert raised.value.code == "file_content_lost"
