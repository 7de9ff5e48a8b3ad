"""Numbers of changes come in the order of commits, and repeated writes change nothing."""

from __future__ import annotations

import asyncio

from sqlalchemy import event

from tests.support.artifacts import BASE_ID, publish_base_model
from tests.support.factories import PRINCIPAL
from tests.support.registry import publish_tuned_model
from tunesmith_server.core import Core
from tunesmith_server.db.tables import ModelRow
from tunesmith_server.registry import repository
from tunesmith_server.registry.catalogue import CatalogueEntry
from tunesmith_server.registry.service import RegistryService


async def test_numbers_are_given_once(each_core: Core) -> None:
    async def take() -> int:
        async with each_core.database.write() as session:
            return await repository.next_version(session)

    numbers = await asyncio.gather(*(take() for _ in range(20)))

    assert sorted(numbers) == list(range(1, 21))


async def test_publishing_again_changes_nothing(each_core: Core) -> None:
    base_revision = await publish_base_model(each_core)
    await publish_tuned_model(each_core, "ft:toy-base:default:a:aaaaaaaa", base_revision)
    async with each_core.database.read() as session:
        before = await repository.current_version(session)

    await publish_tuned_model(each_core, "ft:toy-base:default:a:aaaaaaaa", base_revision)

    async with each_core.database.read() as session:
        assert await repository.current_version(session) == before


async def test_a_list_of_models_makes_no_whole_rows(each_core: Core) -> None:
    base_revision = await publish_base_model(each_core)
    names = [f"ft:toy-base:default:{name}:aaaaaaaa" for name in "abc"]
    for name in names:
        await publish_tuned_model(each_core, name, base_revision)
    loaded: list[ModelRow] = []

    def note(row: ModelRow, _context: object) -> None:
        loaded.append(row)

    event.listen(ModelRow, "load", note)
    try:
        models = await RegistryService(each_core).list_models(PRINCIPAL)
    finally:
        event.remove(ModelRow, "load", note)
    assert [model.id for model in models if model.owned_by == "default"] == names
    assert loaded == []


async def test_a_base_model_is_found_by_id_and_alias(each_core: Core) -> None:
    await publish_base_model(each_core, "one", "two")

    async with each_core.database.read() as session:
        found = [await repository.find_base_model(session, name) for name in (BASE_ID, "one", "two", "three")]

    assert [row and row.id for row in found] == [BASE_ID, BASE_ID, BASE_ID, None]


async def test_an_alias_is_found_before_a_model_that_has_left_the_catalogue(each_core: Core) -> None:
    """As the gateway does, which hears of the newer one last."""
    old = await publish_base_model(each_core)
    async with each_core.database.write() as session:
        entry = CatalogueEntry(id="new", source="new", aliases=(BASE_ID,))
        await repository.sync_base_model(session, entry, 2)
        await repository.drop_aliases(session, {"new"})
        await repository.finish_import(session, "new", "new", revision="b" * 64, files=(), context_length=10)
    async with each_core.database.read() as session:
        assert await repository.revision_of(session, "default", BASE_ID) == "b" * 64 != old
    listed = [model.id for model in await RegistryService(each_core).list_models(PRINCIPAL)]
    assert sorted(listed) == sorted(["new", BASE_ID])


async def test_the_catalogue_decides_what_is_imported(each_core: Core) -> None:
    async def sync(source: str) -> str:
        async with each_core.database.write() as session:
            entry = CatalogueEntry(id=BASE_ID, source=source)
            return (await repository.sync_base_model(session, entry, 1)).state

    await publish_base_model(each_core)

    assert await sync("toy") == repository.READY
    assert await sync("elsewhere") == repository.IMPORTING
    async with each_core.database.write() as session:
        await repository.fail_import(session, BASE_ID, "elsewhere", "no such folder")
    assert await sync("elsewhere") == repository.IMPORTING


async def test_an_import_of_a_source_that_was_replaced_meanwhile_is_not_recorded(each_core: Core) -> None:
    await publish_base_model(each_core)
    async with each_core.database.write() as session:
        await repository.sync_base_model(session, CatalogueEntry(id=BASE_ID, source="new"), 1)

    async with each_core.database.write() as session:
        await repository.finish_import(session, BASE_ID, "toy", revision="0" * 64, files=(), context_length=None)
        await repository.fail_import(session, BASE_ID, "toy", "gone")

    async with each_core.database.read() as session:
        row = await repository.find_base_model(session, BASE_ID)
    assert row is not None
    assert (row.state, row.source) == (repository.IMPORTING, "new")


async def test_a_base_model_outside_the_catalogue_keeps_its_id_only(each_core: Core) -> None:
    await publish_base_model(each_core, "alias")

    async with each_core.database.write() as session:
        await repository.drop_aliases(session, {"another"})

    async with each_core.database.read() as session:
        assert await repository.find_base_model(session, "alias") is None
        assert await repository.find_base_model(session, BASE_ID) is not None
