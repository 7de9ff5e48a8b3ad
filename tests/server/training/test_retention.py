"""The newest three checkpoints and the best one stay, with what somebody refers to; the others go, names and bytes."""

from __future__ import annotations

import time

import pytest

from tests.server.training.test_results import checkpoint_request, complete
from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL, Platform, preflight_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.deployments.schemas import CreateDeployment, Target, UpdateDeployment
from tunesmith_server.deployments.service import DeploymentsService
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.fine_tunes.permission_schemas import CreatePermissions
from tunesmith_server.fine_tunes.permissions import PermissionsService
from tunesmith_server.registry import repository as registry
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.registry.sweep import RevisionsSweep
from tunesmith_server.training import repository
from tunesmith_server.training.retention import CheckpointRetention
from tunesmith_server.training.sweep import RunsSweep


@pytest.fixture
def clock() -> MovableClock:
    """Starts now: a store tells the age of its objects by the machine's clock."""
    return MovableClock(time.time())


async def train(platform: Platform, losses: list[float], *, same_bytes: bool = False) -> AttemptIdentity:
    """A live run with a checkpoint for each validation loss, at steps 1, 2, …"""
    identity = await platform.start_training()
    for step, loss in enumerate(losses, start=1):
        await commit(platform, identity, step, loss, fill=0 if same_bytes else step)
    return identity


async def commit(platform: Platform, identity: AttemptIdentity, step: int, loss: float, fill: int) -> pb.Artifact:
    request = await checkpoint_request(platform, identity, step, fill=fill)
    request.metrics.full_valid_loss = loss
    await platform.training.commit_checkpoint(identity, request)
    return request.artifact


async def damaged(platform: Platform, job_id: str, step: int) -> None:
    async with platform.core.database.write() as session:
        row = await repository.find_checkpoint(session, job_id, step)
        assert row is not None
        row.damaged_at = 1


async def swept(platform: Platform) -> None:
    for sweep in (CheckpointRetention, RunsSweep, RevisionsSweep):
        await sweep(platform.core).run_once()


async def steps(platform: Platform, job_id: str) -> list[int]:
    page = await platform.history.list_checkpoints(PRINCIPAL, job_id)
    return sorted(each.step_number for each in page.data)


async def names_by_step(platform: Platform, job_id: str) -> dict[int, str]:
    """Names of the job's checkpoints."""
    page = await platform.history.list_checkpoints(PRINCIPAL, job_id)
    return {each.step_number: each.fine_tuned_model_checkpoint for each in page.data}


async def lost(platform: Platform, identity: AttemptIdentity) -> AttemptIdentity:
    """Ends the attempt's run and returns the next one."""
    await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_INFRASTRUCTURE))
    await platform.end_run(identity)
    assert isinstance(platform.core.clock, MovableClock)
    platform.core.clock.advance(5)
    return await platform.claim(identity.job_id)


async def folders(platform: Platform, root: str) -> set[str]:
    depth = root.count("/") + 1
    return {key.split("/")[depth] for key in await platform.core.store.list(f"{root}/")}


async def test_the_last_three_and_the_best_stay_while_the_job_runs(each_platform: Platform) -> None:
    platform = each_platform
    identity = await train(platform, [3.0, 1.0, 1.0, 2.0, 2.5, 2.7])

    await swept(platform)

    assert await steps(platform, identity.job_id) == [2, 4, 5, 6]
    kept = {"step-2", "step-4", "step-5", "step-6"}
    assert await folders(platform, f"runs/{identity.job_id}/e{identity.epoch}") == kept
    assert len(await folders(platform, "revisions")) == 4
    names = [model.id for model in await RegistryService(platform.core).list_models(PRINCIPAL)]
    assert sorted(name.rpartition("-")[2] for name in names if ":ckpt-step-" in name) == ["2", "4", "5", "6"]
    artifact = await commit(platform, identity, 7, 2.9, fill=7)
    await complete(platform, identity, 7, artifact)
    await swept(platform)
    assert await steps(platform, identity.job_id) == [2, 5, 6, 7]


async def test_four_checkpoints_all_stay(platform: Platform) -> None:
    identity = await train(platform, [1.0, 2.0, 3.0, 0.5])
    await swept(platform)
    assert await steps(platform, identity.job_id) == [1, 2, 3, 4]


async def test_a_damaged_checkpoint_takes_no_place_of_a_sound_one_and_goes_when_its_time_has_come(
    platform: Platform,
) -> None:
    identity = await train(platform, [3.0, 1.0, 1.0, 2.0, 2.5, 2.7])
    await damaged(platform, identity.job_id, 6)
    await swept(platform)
    assert await steps(platform, identity.job_id) == [2, 3, 4, 5, 6]
    for step in (7, 8, 9):
        await commit(platform, identity, step, 3.0, fill=step)
    await swept(platform)
    assert await steps(platform, identity.job_id) == [2, 7, 8, 9]


async def test_a_shared_checkpoint_stays_and_a_removed_one_cannot_be_shared(each_platform: Platform) -> None:
    platform = each_platform
    identity = await train(platform, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    names = await names_by_step(platform, identity.job_id)
    permissions = PermissionsService(platform.core, lambda: None)
    await permissions.create(names[2], CreatePermissions(project_ids=["other"]))

    await swept(platform)

    assert await steps(platform, identity.job_id) == [2, 4, 5, 6]
    with pytest.raises(NotFoundError):
        await permissions.create(names[1], CreatePermissions(project_ids=["other"]))


async def test_the_checkpoint_that_is_the_model_stays(platform: Platform) -> None:
    identity = await train(platform, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    await complete(platform, identity, 2, (await checkpoint_request(platform, identity, 2, fill=2)).artifact)

    await swept(platform)

    assert await steps(platform, identity.job_id) == [2, 4, 5, 6]


@pytest.mark.parametrize("ending", ["cancelled", "succeeded"])
async def test_a_checkpoint_that_a_job_starts_from_stays_until_that_has_ended(
    each_platform: Platform, ending: str
) -> None:
    platform = each_platform
    identity = await train(platform, [5.0, 4.0, 0.1, 2.0, 1.0, 0.5, 0.6])
    names = await names_by_step(platform, identity.job_id)
    await complete(platform, identity, 7, (await checkpoint_request(platform, identity, 7, fill=7)).artifact)
    await platform.end_run(identity)
    later = await platform.start_preflight(model=names[2])

    await swept(platform)

    assert await steps(platform, identity.job_id) == [2, 3, 5, 6, 7]
    with pytest.raises(NotFoundError) as caught:
        await platform.create(model=names[1])
    assert caught.value.code == "model_deleted"
    for file in (await platform.training.get_spec(later)).warm_start.files:
        start = (await platform.row(later.job_id)).start_revision
        assert await platform.core.store.size(f"revisions/{start}/{file.path}") == file.size
    if ending == "cancelled":
        await platform.fine_tunes.cancel(PRINCIPAL, later.job_id)
        await platform.training.fail_run(later, pb.FailRunRequest())
    else:
        await platform.training.complete_preflight(later, preflight_report())
        await platform.end_run(later)
        later = await platform.claim(later.job_id)
        await complete(platform, later, 1, await commit(platform, later, 1, 1.0, fill=9))
    await swept(platform)
    assert await steps(platform, identity.job_id) == [3, 5, 6, 7]


async def test_what_a_deployment_stands_for_or_would_be_rolled_back_to_stays(each_platform: Platform) -> None:
    platform = each_platform
    identity = await train(platform, [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    names = await names_by_step(platform, identity.job_id)
    deployments = DeploymentsService(platform.core, RegistryService(platform.core))
    await deployments.create(PRINCIPAL, CreateDeployment(name="prod", targets=[Target(model=names[2])]))
    await swept(platform)
    assert await steps(platform, identity.job_id) == [1, 2, 5, 6, 7]

    await deployments.update(PRINCIPAL, "prod", UpdateDeployment(targets=[Target(model=names[7])]))
    await swept(platform)
    assert await steps(platform, identity.job_id) == [1, 2, 5, 6, 7]
    back = await deployments.roll_back(PRINCIPAL, "prod", None)
    assert [target.model for target in back.targets] == [names[2]]

    for step in (7, 6):
        await deployments.update(PRINCIPAL, "prod", UpdateDeployment(targets=[Target(model=names[step])]))
    await swept(platform)
    assert await steps(platform, identity.job_id) == [1, 5, 6, 7], "two versions ago is no way back any more"


async def test_a_deployment_that_was_deleted_keeps_nothing(platform: Platform) -> None:
    identity = await train(platform, [0.5, 1.0, 2.0, 3.0, 4.0, 5.0])
    names = await names_by_step(platform, identity.job_id)
    deployments = DeploymentsService(platform.core, RegistryService(platform.core))
    for step in (2, 3):
        await deployments.create(PRINCIPAL, CreateDeployment(name="prod", targets=[Target(model=names[step])]))
        await deployments.delete(PRINCIPAL, "prod")
    await swept(platform)
    assert await steps(platform, identity.job_id) == [1, 4, 5, 6]


async def test_a_removed_checkpoint_comes_back_when_its_step_is_trained_again(
    each_platform: Platform, clock: MovableClock
) -> None:
    platform = each_platform
    identity = await train(platform, [1.0, 2.0, 2.1, 2.2, 2.3, 2.4])
    names = await names_by_step(platform, identity.job_id)
    clock.advance(60)
    await swept(platform)
    for step in (4, 5, 6):
        await damaged(platform, identity.job_id, step)
    again = await lost(platform, identity)
    assert (await platform.training.get_spec(again)).resume.step == 1

    await commit(platform, again, 2, 2.0, fill=2)

    assert await names_by_step(platform, again.job_id) == {step: names[step] for step in (1, 2, 4, 5, 6)}
    model = await RegistryService(platform.core).get_model(PRINCIPAL, names[2])
    await swept(platform)
    assert model.revision in await folders(platform, "revisions")
    last = await lost(platform, again)
    resume = (await platform.training.get_spec(last)).resume
    assert resume.step == 2
    for file in resume.files:
        path = f"runs/{again.job_id}/e{again.epoch}/step-2/{file.path}"
        assert await platform.core.store.size(path) == file.size


async def test_a_name_that_its_user_deleted_does_not_come_back(platform: Platform, clock: MovableClock) -> None:
    identity = await train(platform, [1.0, 2.0, 2.1, 2.2, 2.3, 2.4])
    names = await names_by_step(platform, identity.job_id)
    models = RegistryService(platform.core)
    await models.delete_model(PRINCIPAL, names[2])
    clock.advance(60)
    await swept(platform)

    await commit(platform, identity, 2, 2.0, fill=2)

    async with platform.core.database.read() as session:
        again = await repository.find_checkpoint(session, identity.job_id, 2)
    assert again is not None
    assert again.removed_at is None, "runs may resume from it"
    assert 2 not in await steps(platform, identity.job_id)
    with pytest.raises(NotFoundError):
        await models.get_model(PRINCIPAL, names[2])


async def test_a_removed_checkpoint_cannot_become_the_model(platform: Platform) -> None:
    identity = await train(platform, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    await swept(platform)
    with pytest.raises(InvalidRequestError) as caught:
        await complete(platform, identity, 1, (await checkpoint_request(platform, identity, 1, fill=1)).artifact)
    assert caught.value.code == "checkpoint_not_committed"


async def test_bytes_that_a_kept_checkpoint_shares_stay(platform: Platform) -> None:
    await train(platform, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5], same_bytes=True)
    before = await platform.core.store.list("revisions/")
    await swept(platform)
    assert await platform.core.store.list("revisions/") == before


async def test_bytes_that_went_can_be_promoted_again(each_platform: Platform) -> None:
    platform = each_platform
    identity = await train(platform, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    await swept(platform)

    await commit(platform, identity, 7, 0.4, fill=1)

    page = await platform.history.list_checkpoints(PRINCIPAL, identity.job_id, limit=1)
    async with platform.core.database.read() as session:
        model = await registry.get_model(session, "default", page.data[0].fine_tuned_model_checkpoint)
    assert model is not None
    assert len(await RegistryService(platform.core).revision_files(model.revision)) > 0
    await RevisionsSweep(platform.core).run_once()
    assert model.revision in await folders(platform, "revisions")


async def test_the_next_attempt_resumes_from_the_newest(platform: Platform) -> None:
    identity = await train(platform, [0.5, 1.0, 2.0, 3.0, 4.0, 5.0])
    await swept(platform)
    again = await lost(platform, identity)
    await swept(platform)

    resume = (await platform.training.get_spec(again)).resume

    assert resume.step == 6
    for file in resume.files:
        path = f"runs/{identity.job_id}/e{identity.epoch}/step-6/{file.path}"
        assert await platform.core.store.size(path) == file.size


async def test_a_damaged_checkpoint_is_best_in_nothing(platform: Platform) -> None:
    """A run that begins again, with other rows maybe, ends with the best of its own."""
    identity = await train(platform, [0.6, 0.7, 0.1, 0.8, 0.9, 1.0])
    await damaged(platform, identity.job_id, 3)
    await swept(platform)
    assert await steps(platform, identity.job_id) == [1, 4, 5, 6]
