"""A shared checkpoint is seen and prompted by the other project, until the permission is taken back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.artifacts import BASE_ID, publish_base_model
from tests.support.registry import DEFAULT, OTHER, publish_tuned_model
from tunesmith_server.core import Core
from tunesmith_server.db.tables import CheckpointRow, ProjectRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.fine_tunes.permission_schemas import CreatePermissions
from tunesmith_server.fine_tunes.permissions import PermissionsService
from tunesmith_server.registry.changes import Change, Servable
from tunesmith_server.registry.service import RegistryService

CHECKPOINT = f"ft:{BASE_ID}:default:org/toy:aaaaaaaa:ckpt-step-2"


async def publish_checkpoint(core: Core) -> None:
    """A checkpoint of the default project, beside two other projects."""
    base_revision = await publish_base_model(core)
    revision = await publish_tuned_model(core, CHECKPOINT, base_revision)
    now = int(core.clock())
    row = CheckpointRow(
        id="ftckpt_1",
        job_id="ftjob-default",
        step=2,
        epoch=1,
        prefix="runs/ftjob-default/e1/step-2",
        training_state=[],
        revision=revision,
        model_name=CHECKPOINT,
        metrics={},
        created_at=now,
    )
    async with core.database.write() as session:
        session.add_all([row, ProjectRow(id="other", created_at=now), ProjectRow(id="third", created_at=now)])


async def servable(feed: AsyncIterator[Change]) -> Servable:
    """What gateways are told next of the checkpoint."""
    async with asyncio.timeout(10):
        while True:
            change = await anext(feed)
            if isinstance(change, Servable) and change.name == CHECKPOINT:
                return change


async def test_sharing_shows_the_model_and_revoking_hides_it(each_core: Core) -> None:
    await publish_checkpoint(each_core)
    registry = RegistryService(each_core)
    permissions = PermissionsService(each_core, registry.changes.announce)
    feed = registry.changes.follow()
    assert (await servable(feed)).shared_with == ()

    page = await permissions.create(CHECKPOINT, CreatePermissions(project_ids=["other", "third", "other"]))

    assert [each.project_id for each in page.data] == ["other", "third"]
    assert (await servable(feed)).shared_with == ("other", "third")
    assert (await servable(registry.changes.follow())).shared_with == ("other", "third")
    assert (await registry.get_model(OTHER, CHECKPOINT)).owned_by == "default"
    assert CHECKPOINT in [model.id for model in await registry.list_models(OTHER)]
    with pytest.raises(NotFoundError):
        await registry.delete_model(OTHER, CHECKPOINT)

    await permissions.delete(CHECKPOINT, page.data[0].id)

    assert (await servable(feed)).shared_with == ("third",)
    with pytest.raises(NotFoundError):
        await registry.get_model(OTHER, CHECKPOINT)
    assert CHECKPOINT not in [model.id for model in await registry.list_models(OTHER)]
    assert (await registry.get_model(DEFAULT, CHECKPOINT)).id == CHECKPOINT
    with pytest.raises(NotFoundError) as caught:
        await permissions.delete(CHECKPOINT, page.data[0].id)
    assert caught.value.code == "permission_not_found"


async def test_sharing_twice_keeps_the_permission(core: Core) -> None:
    await publish_checkpoint(core)
    permissions = PermissionsService(core, lambda: None)
    first, second = [await permissions.create(CHECKPOINT, CreatePermissions(project_ids=["other"])) for _ in range(2)]
    assert first == second
    assert len((await permissions.list(CHECKPOINT)).data) == 1


async def test_permissions_are_listed_in_pages_both_ways(each_core: Core) -> None:
    await publish_checkpoint(each_core)
    permissions = PermissionsService(each_core, lambda: None)
    for project_id in ("other", "third"):
        await permissions.create(CHECKPOINT, CreatePermissions(project_ids=[project_id]))

    first = await permissions.list(CHECKPOINT, limit=1)
    rest = await permissions.list(CHECKPOINT, after=first.last_id)
    ascending = await permissions.list(CHECKPOINT, order="ascending")
    only = await permissions.list(CHECKPOINT, project_id="other")

    assert [each.project_id for each in first.data + rest.data] == ["third", "other"]
    assert (first.has_more, rest.has_more) == (True, False)
    assert [each.project_id for each in ascending.data] == ["other", "third"]
    assert (ascending.first_id, ascending.last_id) == (rest.last_id, first.first_id)
    assert [each.project_id for each in only.data] == ["other"]
    for after in ("cp_unknown", "\x00"):
        with pytest.raises(InvalidRequestError) as caught:
            await permissions.list(CHECKPOINT, after=after)
        assert caught.value.code == "invalid_cursor"
    with pytest.raises(InvalidRequestError):
        await permissions.list(CHECKPOINT, order="asc")


async def test_what_does_not_exist_is_not_shared(core: Core) -> None:
    await publish_checkpoint(core)
    permissions = PermissionsService(core, lambda: None)
    with pytest.raises(InvalidRequestError) as caught:
        await permissions.create(CHECKPOINT, CreatePermissions(project_ids=["other", "nobody"]))
    assert (caught.value.code, caught.value.param) == ("project_not_found", "project_ids")
    assert (await permissions.list(CHECKPOINT)).data == []
    for name in ("ft:nothing", "\x00", BASE_ID):
        with pytest.raises(NotFoundError) as missing:
            await permissions.list(name)
        assert missing.value.code == "checkpoint_not_found"
