"""Which tuned models a job may start from, and what it has to leave as it is; both transports answer alike."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.training.test_results import commit, complete
from tests.support.artifacts import BASE_ID, full_files, publish_base_model
from tests.support.factories import PRINCIPAL, Platform, preflight_report, store_file
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity, Principal
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.fine_tunes.permission_schemas import CreatePermissions
from tunesmith_server.fine_tunes.permissions import PermissionsService
from tunesmith_server.registry.service import RegistryService

OTHER = Principal(project_id="other", key_id="key-2")
DPO = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}


async def tuned(platform: Platform, **settings: Any) -> str:
    """The name of a tuned model whose adapter has rank 8, alpha 16 and these settings."""
    identity = await platform.start_preflight()
    await platform.training.complete_preflight(identity, preflight_report(**settings))
    await platform.end_run(identity)
    identity = await platform.claim(identity.job_id)
    name = await complete(platform, identity, 2, await commit(platform, identity, 2))
    await platform.end_run(identity)
    return name


async def tuned_in_full(platform: Platform) -> str:
    """The name of a tuned model with weights of its own."""
    identity = await platform.start_training(training={"weights": "full"})
    artifact = await commit(platform, identity, 2, contents=full_files(), kind=pb.ARTIFACT_KIND_FULL)
    name = await complete(platform, identity, 2, artifact)
    await platform.end_run(identity)
    return name


async def preflight_spec(platform: Platform, **changes: Any) -> tuple[AttemptIdentity, pb.TrainingSpec]:
    identity = await platform.start_preflight(**changes)
    spec = await platform.training.get_spec(identity)
    await platform.end_run(identity)  # makes room for the next
    return identity, spec


async def refused(platform: Platform, principal: Principal = PRINCIPAL, **changes: Any) -> tuple[str, str | None]:
    """The code and the parameter at fault; nothing is stored."""
    before = (await platform.fine_tunes.list(principal)).data
    with pytest.raises((InvalidRequestError, NotFoundError)) as caught:
        await platform.fine_tunes.create(principal, platform.request(**changes))
    assert (await platform.fine_tunes.list(principal)).data == before
    return caught.value.code, caught.value.param


async def test_a_job_goes_on_from_an_adapter_with_another_method(each_platform: Platform) -> None:
    platform = each_platform
    model = await tuned(platform, lora_targets=["attention"], use_rslora=True)

    identity, spec = await preflight_spec(platform, model=model, method=DPO)

    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert (job.model, job.method.type) == (model, "dpo")
    assert (job.training.lora_rank, job.training.lora_alpha) == (8, 16.0)
    assert (job.training.lora_targets, job.training.use_rslora) == (["attention"], True)
    assert (spec.base_model.id, spec.warm_start.kind) == (BASE_ID, pb.ARTIFACT_KIND_ADAPTER)
    assert {file.path for file in spec.warm_start.files} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "golden.json",
    }
    assert (spec.hyperparameters.lora_rank, spec.hyperparameters.lora_alpha) == (8, 16.0)
    assert (list(spec.hyperparameters.lora_targets), spec.hyperparameters.use_rslora) == (["attention"], True)
    await platform.training.complete_preflight(identity, preflight_report(lora_targets=["attention"], use_rslora=True))
    training = await platform.claim(identity.job_id)
    assert (await platform.training.get_spec(training)).warm_start.kind == pb.ARTIFACT_KIND_ADAPTER
    name = await complete(platform, training, 2, await commit(platform, training, 2, fill=1))
    assert name.startswith(f"ft:{BASE_ID}:default::")


async def test_a_checkpoint_may_be_the_start_while_its_job_runs(platform: Platform) -> None:
    identity = await platform.start_training()
    await commit(platform, identity, 2)
    (checkpoint,) = (await platform.history.list_checkpoints(PRINCIPAL, identity.job_id)).data

    job_id = await platform.create(model=checkpoint.fine_tuned_model_checkpoint)

    assert (await platform.row(job_id)).start_model == checkpoint.fine_tuned_model_checkpoint


async def test_full_weights_are_a_start_for_both_kinds_of_weights(platform: Platform) -> None:
    model = await tuned_in_full(platform)

    for weights in ("lora", "full"):
        _, spec = await preflight_spec(platform, model=model, training={"weights": weights})
        assert spec.warm_start.kind == pb.ARTIFACT_KIND_FULL
        assert {file.path for file in spec.warm_start.files} == set(full_files())
        assert not spec.hyperparameters.HasField("lora_rank")
    _, spec = await preflight_spec(platform, model=model, training={"lora_rank": 4})
    assert spec.hyperparameters.lora_rank == 4


async def test_full_weights_may_go_on_from_an_adapter(platform: Platform) -> None:
    _, spec = await preflight_spec(platform, model=await tuned(platform), training={"weights": "full"})

    assert (spec.weights, spec.warm_start.kind) == (pb.WEIGHTS_FULL, pb.ARTIFACT_KIND_ADAPTER)
    assert not spec.hyperparameters.HasField("lora_rank")


async def test_the_base_is_the_one_that_the_adapter_was_trained_on(platform: Platform) -> None:
    model = await tuned(platform)
    _, spec = await preflight_spec(platform, model=model)
    replaced = await publish_base_model(platform.core, context_length=128)

    identity, later = await preflight_spec(platform, model=model)

    assert later.base_model.revision == spec.base_model.revision != replaced
    await platform.training.complete_preflight(identity, preflight_report())
    resolved = (await platform.row(identity.job_id)).resolved
    assert resolved is not None
    assert resolved["base_revision"] == spec.base_model.revision
    _, fresh = await preflight_spec(platform, model=BASE_ID)
    assert fresh.base_model.revision == replaced


@pytest.mark.parametrize(
    ("training", "name"),
    [
        ({"lora_rank": 4}, "lora_rank"),
        ({"lora_alpha": 8}, "lora_alpha"),
        ({"lora_targets": ["mlp"]}, "lora_targets"),
        ({"use_rslora": False}, "use_rslora"),
    ],
)
async def test_an_adapter_cannot_become_another_one(platform: Platform, training: dict[str, Any], name: str) -> None:
    model = await tuned(platform, lora_targets=["mlp", "attention"], use_rslora=True)

    assert await refused(platform, model=model, training=training) == ("warm_start_mismatch", f"training.{name}")


async def test_what_an_adapter_has_already_may_be_asked_for(platform: Platform) -> None:
    plain, other = await tuned(platform), await tuned(platform, lora_targets=["mlp", "attention"])

    assert (await refused(platform, model=plain, training={"lora_targets": ["mlp"]}))[0] == "warm_start_mismatch"
    await platform.create(model=plain, training={"lora_rank": 8, "lora_alpha": 16, "use_rslora": False})
    await platform.create(model=other, training={"lora_targets": ["attention", "mlp"]})


async def test_another_projects_model_is_not_found_also_where_it_may_be_prompted(platform: Platform) -> None:
    model = await tuned(platform)
    checkpoint = f"{model}:ckpt-step-2"
    permissions = PermissionsService(platform.core, lambda: None)
    await permissions.create(checkpoint, CreatePermissions(project_ids=["other"]))
    file_id = await store_file(platform.core, "other")

    for name in (model, checkpoint, "ft:toy-base:default::nobodys"):
        assert await refused(platform, OTHER, model=name, training_file=file_id) == ("model_not_found", "model")


async def test_a_deleted_model_is_not_a_start_but_jobs_that_have_it_go_on(platform: Platform) -> None:
    model = await tuned(platform)
    identity = await platform.start_preflight(model=model)
    await RegistryService(platform.core).delete_model(PRINCIPAL, model)

    assert await refused(platform, model=model) == ("model_deleted", "model")
    assert (await platform.training.get_spec(identity)).warm_start.files
