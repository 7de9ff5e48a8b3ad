"""Gateways see everything once, then each change in its order, whoever made it, also across a reconnect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.artifacts import BASE_ID, publish_base_model
from tests.support.registry import DEFAULT, OTHER, publish_tuned_model
from tunesmith_server.core import Core
from tunesmith_server.registry import changes, repository
from tunesmith_server.registry.catalogue import CatalogueEntry
from tunesmith_server.registry.changes import Change, Deleted, Servable, SnapshotComplete
from tunesmith_server.registry.service import RegistryService

A = "ft:toy-base:default:a:aaaaaaaa"
B = "ft:toy-base:default:b:bbbbbbbb"


async def take(feed: AsyncIterator[Change], count: int) -> list[Change]:
    async with asyncio.timeout(10):
        return [await anext(feed) for _ in range(count)]


def names(found: list[Change]) -> list[str]:
    return [change.name if isinstance(change, Servable | Deleted) else "-" for change in found]


async def test_a_snapshot_holds_what_can_be_served_and_nothing_else(each_core: Core) -> None:
    base_revision = await publish_base_model(each_core, "gpt-4o-mini")
    revision = await publish_tuned_model(each_core, A, base_revision)
    await publish_tuned_model(each_core, B, base_revision)
    service = RegistryService(each_core)
    await service.delete_model(DEFAULT, B)

    found = await take(service.changes.follow(), 4)

    assert names(found) == ["gpt-4o-mini", "toy-base", A, "-"]
    assert found[1] == Servable(
        name=BASE_ID,
        project_id=None,
        kind="base",
        revision=base_revision,
        base_model_id=BASE_ID,
        base_revision=base_revision,
        created=int(each_core.clock()),
        checkpoint=False,
    )
    assert found[2] == Servable(
        name=A,
        project_id="default",
        kind="adapter",
        revision=revision,
        base_model_id=BASE_ID,
        base_revision=base_revision,
        created=int(each_core.clock()),
        checkpoint=False,
    )
    assert isinstance(found[3], SnapshotComplete)


async def test_changes_follow_in_their_order_and_a_reconnect_sees_the_sum(each_core: Core) -> None:
    base_revision = await publish_base_model(each_core)
    service = RegistryService(each_core)
    feed = service.changes.follow()
    await take(feed, 2)

    await publish_tuned_model(each_core, A, base_revision)
    await publish_tuned_model(each_core, B, base_revision, content=b"other")
    await service.delete_model(DEFAULT, A)

    # A was published and deleted before this follower looked: it hears of the end only.
    assert names(await take(feed, 2)) == [B, A]
    revision = await publish_tuned_model(each_core, B, base_revision, content=b"newer")
    service.changes.announce()
    assert [change.revision for change in await take(feed, 1) if isinstance(change, Servable)] == [revision]
    assert names(await take(service.changes.follow(), 3)) == [BASE_ID, B, "-"]


async def test_changes_of_another_control_plane_are_seen(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "POLL_SECONDS", 0.01)
    base_revision = await publish_base_model(core)
    feed = RegistryService(core).changes.follow()
    await take(feed, 2)

    await publish_tuned_model(core, A, base_revision)

    assert names(await take(feed, 1)) == [A]


async def test_an_own_change_needs_no_poll(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "POLL_SECONDS", 3600)
    base_revision = await publish_base_model(core)
    await publish_tuned_model(core, A, base_revision)
    service = RegistryService(core)
    feed = service.changes.follow()
    await take(feed, 3)
    waiting = asyncio.ensure_future(anext(feed))
    await asyncio.sleep(0.05)

    await service.delete_model(DEFAULT, A)

    assert await asyncio.wait_for(waiting, 10) == Deleted(A)


async def test_names_that_a_base_model_loses_are_deleted(core: Core) -> None:
    await publish_base_model(core, "old-name")
    service = RegistryService(core)
    feed = service.changes.follow()
    await take(feed, 3)

    await publish_base_model(core, "new-name")
    service.changes.announce()
    assert names(await take(feed, 3)) == ["old-name", "new-name", BASE_ID]

    async with core.database.write() as session:
        await repository.sync_base_model(session, CatalogueEntry(id=BASE_ID, source="another"), 1)
    service.changes.announce()
    assert await take(feed, 2) == [Deleted("new-name"), Deleted(BASE_ID)]


async def test_a_feed_ends_when_the_server_stops(core: Core) -> None:
    service = RegistryService(core)
    feed = service.changes.follow()
    await take(feed, 1)
    waiting = asyncio.ensure_future(anext(feed, None))
    await asyncio.sleep(0)

    service.changes.close()

    assert await asyncio.wait_for(waiting, 10) is None
    assert [change async for change in service.changes.follow()] == []


async def test_models_of_every_project_are_in_the_feed(core: Core) -> None:
    base_revision = await publish_base_model(core)
    await publish_tuned_model(core, "ft:toy-base:other:x:cccccccc", base_revision, OTHER.project_id)

    found = await take(RegistryService(core).changes.follow(), 3)

    assert [change.project_id for change in found if isinstance(change, Servable)] == [None, "other"]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_fresh_installation_is_complete_once_its_first_import_has_ended(core: Core, fails: bool) -> None:
    async with core.database.write() as session:
        for name in ("first", "second"):
            await repository.sync_base_model(session, CatalogueEntry(id=name, source="x"), 1)
    service = RegistryService(core)
    feed = service.changes.follow()
    waiting = asyncio.ensure_future(anext(feed))
    await asyncio.sleep(0.05)
    assert not waiting.done()

    for name in ("first", "second") if fails else ("first",):
        async with core.database.write() as session:
            if fails:
                await repository.fail_import(session, name, "x", "gone")
            else:
                await repository.finish_import(session, name, "x", revision="0" * 64, files=(), context_length=None)
    service.changes.announce()

    found = [await asyncio.wait_for(waiting, 10)]
    found += await take(feed, 0 if fails else 1)
    assert names(found) == (["-"] if fails else ["first", "-"])
