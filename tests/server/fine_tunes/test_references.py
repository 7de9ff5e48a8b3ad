"""What a create call refers to, on both databases: nothing of another project's, nothing that has expired."""

from __future__ import annotations

from tests.support.artifacts import BASE_ID
from tests.support.factories import PRINCIPAL, Platform, store_file
from tunesmith_server.fine_tunes import references
from tunesmith_server.fine_tunes.schemas import CreateFineTune


async def test_base_model_and_files_are_found_together(each_platform: Platform) -> None:
    core = each_platform.core
    now = int(core.clock())
    first, second = await store_file(core), await store_file(core, expires_at=now + 1)
    found = await find(each_platform, BASE_ID, first, second, now)
    assert (found.origin, set(found.files)) == (references.Origin(BASE_ID), {first, second})
    assert set((await find(each_platform, BASE_ID, first, second, now + 1)).files) == {first}


async def test_what_is_not_there_is_left_out(each_platform: Platform) -> None:
    deleted = await store_file(each_platform.core, deleted_at=1)
    found = await find(each_platform, "nothing", deleted, "no id \0", 1)
    assert (found.origin, found.files) == (None, {})


async def find(platform: Platform, model: str, training: str, validation: str, now: int) -> references.References:
    request = CreateFineTune(model=model, training_file=training, validation_file=validation)
    async with platform.core.database.read() as session:
        return await references.find(session, PRINCIPAL.project_id, request, now)
