"""A deployment moves from model to model by versions, can always go back, and never stands for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.server.deployments.conftest import ONE, THEIRS, TWO
from tests.support.registry import DEFAULT, OTHER
from tunesmith_server.core import Core
from tunesmith_server.db.tables import DeploymentRow
from tunesmith_server.deployments.schemas import CreateDeployment, Target, UpdateDeployment
from tunesmith_server.deployments.service import MAX_DEPLOYMENTS, DeploymentsService
from tunesmith_server.errors import ConflictError, InvalidRequestError, NotFoundError
from tunesmith_server.registry.changes import Change, Deployed, SnapshotComplete, Undeployed
from tunesmith_server.registry.replicas import Replica, ReplicaState
from tunesmith_server.registry.service import RegistryService


def asking(*models: str, name: str = "bot", pinned: bool = False) -> CreateDeployment:
    return CreateDeployment(name=name, targets=[Target(model=model) for model in models], pinned=pinned)


def moving(**weights: int) -> UpdateDeployment:
    models = {"one": ONE, "two": TWO}
    return UpdateDeployment(targets=[Target(model=models[name], weight=weight) for name, weight in weights.items()])


async def next_of(feed: AsyncIterator[Change]) -> Deployed | Undeployed:
    async with asyncio.timeout(10):
        async for change in feed:
            if isinstance(change, Deployed | Undeployed):
                return change
    raise AssertionError("the feed ended")


async def test_gateways_hear_of_each_version_and_of_the_end(
    service: DeploymentsService, models: RegistryService
) -> None:
    feed = models.changes.follow()
    await service.create(DEFAULT, asking(ONE, pinned=True))
    assert await next_of(feed) == Deployed("default", "bot", 1, ((ONE, 1),), True)

    await service.update(DEFAULT, "bot", moving(one=9, two=1))
    assert await next_of(feed) == Deployed("default", "bot", 2, ((ONE, 9), (TWO, 1)), True)

    await service.roll_back(DEFAULT, "bot", None)
    assert await next_of(feed) == Deployed("default", "bot", 3, ((ONE, 1),), True)

    await service.delete(DEFAULT, "bot")
    assert await next_of(feed) == Undeployed("default", "bot")
    fresh = [change async for change in _snapshot(models)]
    assert not [change for change in fresh if isinstance(change, Deployed | Undeployed)]


async def _snapshot(models: RegistryService) -> AsyncIterator[Change]:
    async for change in models.changes.follow():
        yield change
        if isinstance(change, SnapshotComplete):
            return


async def test_versions_go_on_when_a_name_is_given_again(service: DeploymentsService) -> None:
    await service.create(DEFAULT, asking(ONE))
    await service.update(DEFAULT, "bot", moving(two=1))
    await service.delete(DEFAULT, "bot")
    assert (await service.create(DEFAULT, asking(ONE))).version == 3

    page = await service.list_versions(DEFAULT, "bot", limit=2)
    assert ([each.version for each in page.data], page.has_more) == ([3, 2], True)
    rest = await service.list_versions(DEFAULT, "bot", after=2)
    assert ([each.targets[0].model for each in rest.data], rest.has_more) == ([ONE], False)


async def test_the_same_targets_again_are_no_version(service: DeploymentsService) -> None:
    await service.create(DEFAULT, asking(ONE))
    again = await service.update(DEFAULT, "bot", moving(one=1))
    assert (again.version, again.pinned) == (1, False)
    pinned = await service.update(DEFAULT, "bot", UpdateDeployment(pinned=True))
    assert (pinned.version, pinned.pinned) == (1, True)


async def test_changes_at_the_same_moment_each_get_a_number(service: DeploymentsService) -> None:
    await service.create(DEFAULT, asking(ONE))
    await asyncio.gather(*(service.update(DEFAULT, "bot", moving(one=weight)) for weight in range(2, 7)))

    page = await service.list_versions(DEFAULT, "bot")
    assert [each.version for each in page.data] == [6, 5, 4, 3, 2, 1]
    assert {each.targets[0].weight for each in page.data} == {1, 2, 3, 4, 5, 6}


async def test_how_far_gateways_are_is_shown(
    service: DeploymentsService, models: RegistryService, each_core: Core
) -> None:
    await service.create(DEFAULT, asking(ONE, "toy-base"))
    revision = (await models.get_model(DEFAULT, ONE)).revision
    since = int(each_core.clock())
    await models.replicas.take("g", [Replica(revision, "g", "e", ReplicaState.READY, None, since, 0)])

    shown = await service.get(DEFAULT, "bot")
    assert [(target.model, target.state) for target in shown.targets] == [(ONE, "ready"), ("toy-base", "not_loaded")]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (asking("nothing"), "model_not_found"),
        (asking(THEIRS), "model_not_found"),
        (asking("nul\0"), "model_not_found"),
        (asking(ONE, ONE), "duplicate_target"),
        (CreateDeployment(name="bot", targets=[Target(model=ONE, weight=0)]), "no_weighted_target"),
    ],
)
async def test_what_nobody_could_answer_is_refused(
    service: DeploymentsService, request_: CreateDeployment, code: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await service.create(DEFAULT, request_)
    assert refused.value.code == code
    assert (await service.list(DEFAULT)).data == []


async def test_names_are_unique_in_their_project_only(service: DeploymentsService) -> None:
    made = await service.create(DEFAULT, asking(ONE))
    assert await service.create(DEFAULT, asking(ONE)) == made, "a repeated request is no conflict"
    with pytest.raises(ConflictError) as taken:
        await service.create(DEFAULT, asking(TWO))
    assert taken.value.code == "deployment_exists"
    with pytest.raises(ConflictError) as base:
        await service.create(DEFAULT, asking(ONE, name="toy-base"))
    assert base.value.code == "deployment_name_taken"

    assert (await service.create(OTHER, asking(THEIRS))).version == 1
    assert [each.targets[0].model for each in (await service.list(DEFAULT)).data] == [ONE]


async def test_another_projects_name_for_a_shared_model_does_not_let_it_be_deleted(
    service: DeploymentsService, models: RegistryService, each_core: Core
) -> None:
    await service.create(DEFAULT, asking(ONE))
    await service.create(OTHER, asking(THEIRS))
    async with each_core.database.write() as session:  # as if the model had been shared with them
        theirs = await session.get(DeploymentRow, (OTHER.project_id, "bot"))
        assert theirs is not None
        theirs.targets = [{"model": ONE, "weight": 1}]
    with pytest.raises(ConflictError):
        await models.delete_model(DEFAULT, ONE)


async def test_a_model_that_answers_under_a_name_cannot_be_deleted(
    service: DeploymentsService, models: RegistryService
) -> None:
    await service.create(DEFAULT, asking(ONE))
    with pytest.raises(ConflictError) as refused:
        await models.delete_model(DEFAULT, ONE)
    assert refused.value.code == "model_deployed"

    await service.update(DEFAULT, "bot", moving(two=1))
    await models.delete_model(DEFAULT, ONE)
    with pytest.raises(InvalidRequestError) as gone:
        await service.roll_back(DEFAULT, "bot", 1)
    assert gone.value.code == "model_not_found"


async def test_it_is_listed_among_the_models(service: DeploymentsService, models: RegistryService) -> None:
    await service.create(DEFAULT, asking("toy-base", ONE))
    assert [model.id for model in await models.list_models(DEFAULT)] == ["bot", ONE, TWO, "toy-base"]
    assert (await models.get_model(DEFAULT, "bot")).owned_by == "default"
    assert [model.id for model in await models.list_models(OTHER)] == [THEIRS, "toy-base"]
    await service.delete(DEFAULT, "bot")
    with pytest.raises(NotFoundError):
        await models.get_model(DEFAULT, "bot")


async def test_what_is_not_there_is_said_so(service: DeploymentsService) -> None:
    await service.create(DEFAULT, asking(ONE))
    for number in (None, 2):
        with pytest.raises(NotFoundError) as missing:
            await service.roll_back(DEFAULT, "bot", number)
        assert missing.value.code == "deployment_version_not_found"
    for name in ("other", "nul\0"):
        with pytest.raises(NotFoundError):
            await service.get(DEFAULT, name)


async def test_a_project_has_a_bounded_number(service: DeploymentsService) -> None:
    for number in range(MAX_DEPLOYMENTS):
        await service.create(DEFAULT, asking(ONE, name=f"bot-{number}"))
    with pytest.raises(InvalidRequestError) as many:
        await service.create(DEFAULT, asking(ONE))
    assert many.value.code == "too_many_deployments"
