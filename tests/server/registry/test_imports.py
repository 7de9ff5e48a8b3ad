"""Models from outside: what a call begins, what its users see until it is a model, and what they can do meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.artifacts import BASE_ID, adapter_files, publish_base_model, upload
from tests.support.core import open_core
from tests.support.factories import PRINCIPAL, Platform, make_platform, store_file
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity, Principal
from tunesmith_server.errors import ConflictError, FencedError, InvalidRequestError, NotFoundError, QuotaExceededError
from tunesmith_server.files.service import FilesService
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.registry.imports import ImportsService
from tunesmith_server.registry.schemas import CreateModel
from tunesmith_server.registry.service import Model, RegistryService

OTHER = Principal(project_id="other", key_id="key-2")


async def body(platform: Platform, **changes: Any) -> CreateModel:
    """A create call that is accepted."""
    file = await store_file(platform.core, purpose="model", filename="model.tar", rows=0)
    return CreateModel.model_validate({"base_model": BASE_ID, "file": file} | changes)


async def begin(platform: Platform, **changes: Any) -> tuple[str, str]:
    """Begins an import; its row's id and its model's name."""
    row = await ImportsService(platform.core).create(PRINCIPAL, await body(platform, **changes))
    return row.id, f"ft:{BASE_ID}:default:{row.suffix or ''}:{row.name_id}"


async def deliver(platform: Platform, identity: AttemptIdentity, fill: int = 0) -> pb.CompleteImportRequest:
    """Uploads an artifact as the run does, and returns what the run says at its end."""
    prefix = f"runs/{identity.job_id}/e{identity.epoch}/model"
    files = await upload(platform.core, prefix, adapter_files(fill=fill))
    said = [pb.UploadFile(path=file.path, size=file.size, sha256=file.sha256) for file in files]
    return pb.CompleteImportRequest(
        artifact=pb.Artifact(kind=pb.ARTIFACT_KIND_ADAPTER, prefix="model", files=said),
        adapter=pb.Hyperparameters(lora_rank=2, lora_alpha=4, lora_targets=["q_proj", "up_proj"]),
    )


async def finish(platform: Platform, **changes: Any) -> tuple[str, str]:
    """An import that has ended well; its row's id and its model's name."""
    row_id, name = await begin(platform, **changes)
    identity = await platform.claim(row_id)
    await platform.training.get_spec(identity)
    assert await platform.training.complete_import(identity, await deliver(platform, identity)) == name
    await platform.end_run(identity)
    return row_id, name


async def shown(platform: Platform, name: str, principal: Principal = PRINCIPAL) -> Model:
    return await RegistryService(platform.core).get_model(principal, name)


async def listed(platform: Platform) -> list[str]:
    return [model.id for model in await RegistryService(platform.core).list_models(PRINCIPAL)]


async def test_an_import_becomes_a_model(each_platform: Platform) -> None:
    row_id, name = await begin(each_platform, suffix="mine")
    assert name.startswith(f"ft:{BASE_ID}:default:mine:")
    assert (await shown(each_platform, name)).status == "importing"
    assert name not in await listed(each_platform), "the list holds what can be prompted"

    identity = await each_platform.claim(row_id)
    spec = await each_platform.training.get_spec(identity)
    assert spec.kind == pb.RUN_KIND_IMPORT
    assert (spec.base_model.id, spec.max_lora_rank) == (BASE_ID, each_platform.core.settings.max_lora_rank)
    assert spec.model_archive.path.endswith(".tar")
    attempt = await each_platform.attempt(identity.attempt_id)
    assert (attempt.kind, attempt.device_ids) == ("preflight", [])

    request = await deliver(each_platform, identity)
    assert await each_platform.training.complete_import(identity, request) == name
    assert await each_platform.training.complete_import(identity, request) == name, "a run may say it twice"
    model = await shown(each_platform, name)
    assert (model.status, model.error, model.owned_by) == ("ready", None, "default")
    assert len(model.revision) == 64
    assert name in await listed(each_platform)


async def test_a_run_that_was_lost_is_followed_by_another_on_the_same_base(platform: Platform) -> None:
    row_id, name = await begin(platform)
    first = await platform.claim(row_id)
    before = await platform.training.get_spec(first)
    # As the reconciler does with a run that is gone.
    failure = pb.FailRunRequest(cause=pb.FAILURE_CAUSE_INFRASTRUCTURE, failures=[pb.Failure(code="x", message="X.")])
    await platform.training.fail_run(first, failure)
    await platform.end_run(first)
    platform.core.clock.advance(60)  # type: ignore[attr-defined]  # a test's clock
    second = await platform.claim(row_id)
    await publish_base_model(platform.core, context_length=65)  # of another revision under the same name
    after = await platform.training.get_spec(second)
    assert (second.epoch, after.base_model.revision) == (2, before.base_model.revision)
    with pytest.raises(FencedError):
        await platform.training.complete_import(first, await deliver(platform, first))
    await platform.training.complete_import(second, await deliver(platform, second))
    assert (await shown(platform, name)).status == "ready"


async def test_no_route_of_jobs_shows_it(platform: Platform) -> None:
    row_id, _ = await finish(platform)
    assert (await platform.fine_tunes.list(PRINCIPAL)).data == []
    with pytest.raises(NotFoundError):
        await platform.fine_tunes.get(PRINCIPAL, row_id)


async def test_what_the_run_finds_wrong_is_told(platform: Platform) -> None:
    row_id, name = await begin(platform)
    identity = await platform.claim(row_id)
    failure = pb.Failure(code="tokenizer_differs", message="The tokenizer.json is not the base model's.", param="file")
    await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_USER, failures=[failure]))
    model = await shown(platform, name)
    assert model.status == "failed"
    assert model.error is not None
    assert (model.error.code, model.error.param) == ("tokenizer_differs", "file")
    assert name not in await listed(platform)
    with pytest.raises(NotFoundError):
        await RegistryService(platform.core).delete_model(PRINCIPAL, name)


async def test_an_artifact_that_engines_would_not_load_is_refused(platform: Platform) -> None:
    row_id, _ = await begin(platform)
    identity = await platform.claim(row_id)
    await platform.training.get_spec(identity)
    request = await deliver(platform, identity)
    del request.artifact.files[0]
    with pytest.raises(InvalidRequestError) as caught:
        await platform.training.complete_import(identity, request)
    assert caught.value.code == "artifact_rejected"


async def test_only_the_run_of_an_import_completes_one(platform: Platform) -> None:
    identity = await platform.start_training()
    with pytest.raises(InvalidRequestError) as caught:
        await platform.training.complete_import(identity, await deliver(platform, identity))
    assert caught.value.code == "not_an_import"


async def test_the_same_key_gives_the_same_import(each_platform: Platform) -> None:
    imports, request = ImportsService(each_platform.core), await body(each_platform)
    made = await asyncio.gather(*(imports.create(PRINCIPAL, request, "key") for _ in range(3)))
    assert len({row.id for row in made}) == 1
    with pytest.raises(ConflictError) as caught:
        await imports.create(PRINCIPAL, request.model_copy(update={"suffix": "other"}), "key")
    assert caught.value.code == "idempotency_conflict"
    with pytest.raises(ConflictError):
        await each_platform.fine_tunes.create(PRINCIPAL, each_platform.request(), "key")
    assert (await imports.create(PRINCIPAL, request)).id != made[0].id


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"base_model": "nobody"}, "model_not_found", "base_model"),
        ({"base_model": "no\0body"}, "model_not_found", "base_model"),
        ({"base_model": f"ft:{BASE_ID}:default::aaaaaaaa"}, "model_not_found", "base_model"),
        ({"file": "file-nothing"}, "file_not_found", "file"),
        ({"file": "no\0id"}, "file_not_found", "file"),
    ],
)
async def test_what_is_not_there_is_named(
    each_platform: Platform, changes: dict[str, str], code: str, param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await begin(each_platform, **changes)
    assert (caught.value.code, caught.value.param) == (code, param)


async def test_files_of_other_purposes_and_projects_are_refused(platform: Platform) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await begin(platform, file=platform.training_file)
    assert caught.value.code == "invalid_purpose"
    with pytest.raises(InvalidRequestError) as caught:
        await begin(platform, file=await store_file(platform.core, "other", purpose="model"))
    assert caught.value.code == "file_not_found"


async def test_an_alias_names_the_base(platform: Platform) -> None:
    _, name = await begin(platform, base_model="gpt-4o-mini-2024-07-18")
    assert name.startswith(f"ft:{BASE_ID}:")


async def test_imports_count_as_jobs_under_way(tmp_path: Path) -> None:
    async with open_core(tmp_path / "home", quota_max_jobs=1) as core:
        platform = await make_platform(core)
        await begin(platform)
        with pytest.raises(QuotaExceededError):
            await begin(platform)
        with pytest.raises(QuotaExceededError):
            await platform.create()


async def test_the_file_is_kept_until_the_import_has_ended(platform: Platform) -> None:
    request = await body(platform)
    row = await ImportsService(platform.core).create(PRINCIPAL, request)
    files = FilesService(platform.core)
    with pytest.raises(ConflictError) as caught:
        await files.delete(PRINCIPAL, request.file)
    assert caught.value.code == "file_in_use"
    identity = await platform.claim(row.id)
    await platform.training.get_spec(identity)
    await platform.training.complete_import(identity, await deliver(platform, identity))
    await files.delete(PRINCIPAL, request.file)


async def test_deleting_gives_an_import_up(each_platform: Platform) -> None:
    registry = RegistryService(each_platform.core)
    waiting, waiting_name = await begin(each_platform)
    await registry.delete_model(PRINCIPAL, waiting_name)
    assert (await each_platform.row(waiting)).state == State.CANCELLED

    running, name = await begin(each_platform)
    identity = await each_platform.claim(running)
    await each_platform.training.get_spec(identity)
    await registry.delete_model(PRINCIPAL, name)
    beat = await each_platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1, phase="loading"))
    assert beat.command == pb.COMMAND_STOP
    with pytest.raises(FencedError):
        await each_platform.training.complete_import(identity, await deliver(each_platform, identity))
    for gone in (waiting_name, name):
        with pytest.raises(NotFoundError):
            await shown(each_platform, gone)
        with pytest.raises(NotFoundError):
            await registry.delete_model(PRINCIPAL, gone)


async def test_a_model_from_outside_is_deleted_like_any_other(platform: Platform) -> None:
    _, name = await finish(platform)
    await RegistryService(platform.core).delete_model(PRINCIPAL, name)
    with pytest.raises(NotFoundError):
        await shown(platform, name)


async def test_other_projects_do_not_see_it(platform: Platform) -> None:
    _, coming = await begin(platform)
    with pytest.raises(NotFoundError):
        await shown(platform, coming, OTHER)
    with pytest.raises(NotFoundError):
        await RegistryService(platform.core).delete_model(OTHER, coming)
    for near in (
        coming.replace(":default:", ":other:"),
        f"{coming}:ckpt-step-1",
        coming.rpartition(":")[2],
        coming + "\0",
    ):
        with pytest.raises(NotFoundError):
            await shown(platform, near)


async def test_a_job_goes_on_from_it_with_its_adapters_settings(platform: Platform) -> None:
    _, name = await finish(platform)
    row = await platform.row(await platform.create(model=name))
    asked = {"lora_rank": 2, "lora_alpha": 4.0, "lora_targets": ["q_proj", "up_proj"]}
    assert row.requested.items() >= asked.items()
    assert row.start_revision == (await shown(platform, name)).revision
    with pytest.raises(InvalidRequestError) as caught:
        await platform.create(model=name, training={"lora_rank": 8})
    assert caught.value.code == "warm_start_mismatch"
    with pytest.raises(NotFoundError):
        await platform.create(model=(await begin(platform))[1])
