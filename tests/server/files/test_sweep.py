"""The sweep removes what expired and what a crash left, and nothing else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import update

from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FileRow, FineTuneRow, UploadPartRow, UploadRow
from tunesmith_server.errors import ConflictError, FencedError, InvalidRequestError, NotFoundError
from tunesmith_server.files import repository
from tunesmith_server.files.limits import ExpiresAfter
from tunesmith_server.files.service import FilesService
from tunesmith_server.files.sweep import COMPLETION_GRACE_SECONDS, FilesSweep
from tunesmith_server.files.upload_service import UploadsService
from tunesmith_server.storage.orphans import GRACE_SECONDS

ROW = b'{"prompt": "2+2=", "completion": "4"}\n'
HOUR = ExpiresAfter("created_at", 3600)


async def stream(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def add_file(core: Core, rows: int = 10, expires_after: ExpiresAfter | None = None) -> FileRow:
    return await FilesService(core).create(
        PRINCIPAL, filename="a.jsonl", purpose="fine-tune", chunks=stream(ROW * rows), expires_after=expires_after
    )


async def begin_upload(core: Core) -> str:
    upload = await UploadsService(core).create(
        PRINCIPAL, filename="a.jsonl", purpose="fine-tune", size=len(ROW), mime_type="text/jsonl"
    )
    return upload.row.id


async def keys(core: Core) -> list[str]:
    """Objects of files and of parts."""
    return [*await core.store.list("files/"), *await core.store.list("uploads/")]


async def test_an_expired_file_is_gone_at_once_and_its_bytes_with_the_next_pass(
    each_platform: Platform, clock: MovableClock
) -> None:
    core, files = each_platform.core, FilesService(each_platform.core)
    kept, expiring = await add_file(core), await add_file(core, expires_after=HOUR)
    assert expiring.expires_at == clock.now + 3600
    clock.advance(3599)
    assert (await files.get(PRINCIPAL, expiring.id)).id == expiring.id
    clock.advance(1)
    for use in (files.get, files.open, files.delete):
        with pytest.raises(NotFoundError):
            await use(PRINCIPAL, expiring.id)
    assert expiring.id not in [row.id for row in (await files.list(PRINCIPAL)).files]
    for changes in ({"training_file": expiring.id}, {"validation_file": expiring.id}):
        with pytest.raises(InvalidRequestError) as raised:
            await each_platform.create(**changes)
        assert raised.value.code == "file_not_found"

    assert expiring.storage_key in await keys(core)
    await FilesSweep(core).run_once()
    assert expiring.storage_key not in await keys(core)
    assert kept.storage_key in await keys(core)
    # As a cursor it serves on: a walk through a list does not break.
    assert next(row.id for row in (await files.list(PRINCIPAL, after=expiring.id)).files) == kept.id


async def test_a_job_keeps_the_bytes_of_a_file_that_expires_under_it(platform: Platform, clock: MovableClock) -> None:
    core, sweep = platform.core, FilesSweep(platform.core)
    training, validation = await add_file(core, expires_after=HOUR), await add_file(core, expires_after=HOUR)
    identity = await platform.start_preflight(training_file=training.id, validation_file=validation.id)
    clock.advance(3600)
    await sweep.run_once()
    spec = await platform.training.get_spec(identity)
    assert spec.training_file.path == f"{training.id}.jsonl"
    assert {training.storage_key, validation.storage_key} <= set(await keys(core))

    async with core.database.write() as session:
        await session.execute(update(FineTuneRow).values(state="failed", lease_token=None))
    await sweep.run_once()
    assert not {training.storage_key, validation.storage_key} & set(await keys(core))
    with pytest.raises(FencedError):
        await platform.training.get_spec(identity)


async def test_an_expired_upload_takes_nothing_and_loses_its_parts(
    each_platform: Platform, clock: MovableClock
) -> None:
    core, uploads = each_platform.core, UploadsService(each_platform.core)
    before = await keys(core)
    upload_id = await begin_upload(core)
    part = await uploads.add_part(PRINCIPAL, upload_id, stream(ROW))
    clock.advance(3600)
    assert (await uploads.get(PRINCIPAL, upload_id)).status == "expired"
    for attempt in (
        uploads.add_part(PRINCIPAL, upload_id, stream(ROW)),
        uploads.complete(PRINCIPAL, upload_id, [part.id]),
        uploads.cancel(PRINCIPAL, upload_id),
    ):
        with pytest.raises(ConflictError) as raised:
            await attempt
        assert raised.value.code == "upload_expired"

    # For a completion that began in time the parts stay a while.
    await FilesSweep(core).run_once()
    assert part.storage_key in await keys(core)
    clock.advance(COMPLETION_GRACE_SECONDS)
    await FilesSweep(core).run_once()
    assert await keys(core) == before
    async with core.database.read() as session:
        assert (await session.get(UploadPartRow, part.id)) is None
        assert (await repository.stored_bytes(session, PRINCIPAL.project_id)) == sum(
            row.bytes for row in (await FilesService(core).list(PRINCIPAL)).files
        )


async def test_what_a_crash_left_goes_after_a_day_and_nothing_else(
    each_platform: Platform, clock: MovableClock
) -> None:
    # A store tells the age of its objects by the machine's clock. Uploads do not live for a day.
    clock.now = time.time() + GRACE_SECONDS - 1800
    core, uploads = each_platform.core, UploadsService(each_platform.core)
    row, gone = await add_file(core), await add_file(core)
    upload_id = await begin_upload(core)
    part = await uploads.add_part(PRINCIPAL, upload_id, stream(ROW))
    await FilesService(core).delete(PRINCIPAL, gone.id)
    left = [gone.storage_key, "files/default/file-without-row", f"uploads/default/{upload_id}/part_without_row"]
    for key in (*left, "runs/ftjob-1/e1/results.csv"):
        await core.store.put_bytes(key, ROW)
    sweep = FilesSweep(core)
    for _ in range(2):
        await sweep.run_once()
    assert set(left) <= set(await keys(core)), "the database may be the wrong one"
    clock.advance(1810)
    await sweep.run_once()

    assert not set(left) & set(await keys(core))
    assert {row.storage_key, part.storage_key} <= set(await keys(core))
    assert await core.store.size("runs/ftjob-1/e1/results.csv") == len(ROW)


@pytest.mark.parametrize("status", ["completed", "cancelled", "expired"])
async def test_parts_of_an_ended_upload_that_a_crash_left_go(platform: Platform, status: str) -> None:
    core, uploads = platform.core, UploadsService(platform.core)
    upload_id = await begin_upload(core)
    parts = [await uploads.add_part(PRINCIPAL, upload_id, stream(ROW)) for _ in range(2)]
    async with core.database.write() as session:
        await session.execute(update(UploadRow).values(status=status))
    # The crash came after the first object was deleted.
    await core.store.delete(parts[0].storage_key)
    await FilesSweep(core).run_once()
    assert await core.store.list("uploads/") == []
    async with core.database.read() as session:
        assert [await session.get(UploadPartRow, part.id) for part in parts] == [None, None]
