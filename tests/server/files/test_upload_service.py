"""What may happen while an upload is completed: it is cancelled, it expires, the database or the store fails."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL
from tunesmith_server.core import Core
from tunesmith_server.db.tables import ProjectRow
from tunesmith_server.errors import ConflictError, UnavailableError
from tunesmith_server.files import upload_repository
from tunesmith_server.files.service import FilesService
from tunesmith_server.files.sweep import FilesSweep
from tunesmith_server.files.upload_service import UploadsService
from tunesmith_server.storage.orphans import GRACE_SECONDS

ROW = b'{"prompt": "2+2=", "completion": "4"}\n'


async def stream(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture
async def uploads(core: Core) -> UploadsService:
    async with core.database.write() as session:
        session.add(ProjectRow(id=PRINCIPAL.project_id, created_at=0))
    return UploadsService(core)


async def begin(uploads: UploadsService) -> tuple[str, str]:
    """A pending upload and its only part."""
    upload = await uploads.create(
        PRINCIPAL, filename="a.jsonl", purpose="fine-tune", size=len(ROW), mime_type="text/jsonl"
    )
    return upload.row.id, (await uploads.add_part(PRINCIPAL, upload.row.id, stream(ROW))).id


@pytest.fixture
def before_storing(core: Core, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Awaitable[object]]], None]:
    """Has something happen right before the joined file is stored."""
    put_file = core.store.put_file

    def plan(happens: Callable[[], Awaitable[object]]) -> None:
        async def put(key: str, source: Path) -> None:
            await happens()
            await put_file(key, source)

        monkeypatch.setattr(core.store, "put_file", put)

    return plan


async def test_a_part_is_taken_without_a_look_at_all_others(
    uploads: UploadsService, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, _ = await begin(uploads)
    monkeypatch.delattr(upload_repository, "list_parts")
    await uploads.add_part(PRINCIPAL, upload_id, stream(ROW))


async def test_a_cancellation_wins_over_a_completion_under_way(
    uploads: UploadsService, core: Core, before_storing: Callable[..., None]
) -> None:
    upload_id, part_id = await begin(uploads)
    before_storing(lambda: uploads.cancel(PRINCIPAL, upload_id))
    with pytest.raises(ConflictError) as raised:
        await uploads.complete(PRINCIPAL, upload_id, [part_id])
    assert raised.value.code == "upload_cancelled"
    assert await core.store.list("") == []
    assert (await FilesService(core).list(PRINCIPAL)).files == []


async def test_a_completion_that_began_in_time_ends_well(
    uploads: UploadsService, core: Core, clock: MovableClock, before_storing: Callable[..., None]
) -> None:
    upload_id, part_id = await begin(uploads)

    async def expire() -> None:
        clock.advance(3600)
        await FilesSweep(core).run_once()

    before_storing(expire)
    assert (await uploads.complete(PRINCIPAL, upload_id, [part_id])).status == "completed"
    assert len(await core.store.list("files/")) == 1


async def test_parts_that_are_gone_are_told(uploads: UploadsService, core: Core) -> None:
    upload_id, part_id = await begin(uploads)
    (key,) = await core.store.list("uploads/")
    await core.store.delete(key)
    with pytest.raises(ConflictError) as raised:
        await uploads.complete(PRINCIPAL, upload_id, [part_id])
    assert raised.value.code == "upload_parts_lost"


async def test_a_database_that_fails_at_the_end_leaves_an_upload_to_complete_again(
    uploads: UploadsService, core: Core, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, part_id = await begin(uploads)

    async def fail(*_: object) -> None:
        raise OperationalError("UPDATE", {}, OSError("away"))

    with monkeypatch.context() as patched:
        patched.setattr(upload_repository, "set_file", fail)
        with pytest.raises(OperationalError):
            await uploads.complete(PRINCIPAL, upload_id, [part_id])
    # Nobody knows whether it was committed, so the object stays until the sweep has asked.
    (orphan,) = await core.store.list("files/")
    completed = await uploads.complete(PRINCIPAL, upload_id, [part_id])
    assert completed.file is not None
    clock.now = time.time() + GRACE_SECONDS + 10  # a store tells the age of its objects by the machine's clock
    await FilesSweep(core).run_once()
    assert await core.store.list("") == [completed.file.storage_key]
    assert completed.file.storage_key != orphan


async def test_parts_that_cannot_be_removed_do_not_spoil_the_answer(
    uploads: UploadsService, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, part_id = await begin(uploads)

    async def fail(key: str) -> None:
        raise UnavailableError("storage_unavailable", f"{key} cannot be deleted.")

    with monkeypatch.context() as patched:
        patched.setattr(core.store, "delete", fail)
        assert (await uploads.complete(PRINCIPAL, upload_id, [part_id])).status == "completed"
    assert len(await core.store.list("uploads/")) == 1
    await FilesSweep(core).run_once()
    assert await core.store.list("uploads/") == []
