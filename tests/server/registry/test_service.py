"""Models are listed, read, deleted and promoted, on SQLite with a folder and on PostgreSQL with S3."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.artifacts import (
    BASE_ID,
    adapter_files,
    adapter_shapes,
    declared,
    full_files,
    publish_base_model,
    safetensors_bytes,
    upload,
)
from tests.support.core import open_core
from tests.support.registry import DEFAULT, OTHER, publish_tuned_model
from tunesmith_server.core import Core
from tunesmith_server.errors import InvalidRequestError, NotFoundError, PermissionDeniedError, UnavailableError
from tunesmith_server.registry import repository
from tunesmith_server.registry.catalogue import CatalogueEntry
from tunesmith_server.registry.manifest import ArtifactKind
from tunesmith_server.registry.repository import Revision
from tunesmith_server.registry.service import RegistryService

PREFIX = "runs/ftjob-1/e1/step-4"
Files = dict[str, bytes]


async def promote(core: Core, files: Files, kind: ArtifactKind = ArtifactKind.ADAPTER, **changes: Any) -> Revision:
    base_revision = await publish_base_model(core)
    announced = changes.pop("declared", None)
    uploaded = await upload(core, PREFIX, files)
    return await RegistryService(core).promote(
        kind=kind,
        prefix=PREFIX,
        files=announced or uploaded,
        base_model_id=BASE_ID,
        base_revision=base_revision,
        max_lora_rank=8,
        **changes,
    )


@pytest.mark.parametrize(
    ("kind", "files"), [(ArtifactKind.ADAPTER, adapter_files()), (ArtifactKind.FULL, full_files())]
)
async def test_an_artifact_becomes_a_revision(each_core: Core, kind: ArtifactKind, files: Files) -> None:
    revision = await promote(each_core, files, kind)

    stored = await each_core.store.list(f"revisions/{revision.id}/")
    assert stored == sorted(f"revisions/{revision.id}/{name}" for name in [*files, "manifest.json"])


async def test_promotion_may_be_repeated_even_after_the_run_has_changed_its_files(core: Core) -> None:
    files = adapter_files()
    revision = await promote(core, files)

    again = await promote(core, adapter_files(fill=1), declared=declared(files))

    assert again == revision
    weights = b"".join([chunk async for chunk in core.store.read(f"revisions/{revision.id}/adapter_model.safetensors")])
    assert weights == files["adapter_model.safetensors"]


async def test_a_damaged_revision_is_mended_and_what_is_whole_of_it_stays(each_core: Core) -> None:
    files, store = adapter_files(), each_core.store
    revision = await promote(each_core, files)
    weights, golden = (f"revisions/{revision.id}/{name}" for name in ("adapter_model.safetensors", "golden.json"))
    await store.put_bytes(weights, files["adapter_model.safetensors"][::-1])
    await store.delete(golden)
    copied = []
    copy = store.copy

    async def copy_and_note(source: str, target: str) -> None:
        copied.append(target)
        await copy(source, target)

    store.copy = copy_and_note  # type: ignore[method-assign]  # tells which files were found damaged
    assert await promote(each_core, files) == revision
    assert copied == [], "nobody looks at a revision again without a reason"
    assert await promote(each_core, files, mend=True) == revision
    assert sorted(copied) == [weights, golden]
    for key in copied:
        assert b"".join([chunk async for chunk in store.read(key)]) == files[key.rpartition("/")[2]]


async def test_other_bytes_are_another_revision(core: Core) -> None:
    assert await promote(core, adapter_files()) != await promote(core, adapter_files(fill=1))


def with_changed(name: str, content: bytes) -> Files:
    return adapter_files() | {name: content}


REJECTED: dict[str, tuple[ArtifactKind, Files]] = {
    "adapter_rank_too_high": (ArtifactKind.ADAPTER, adapter_files(r=16)),
    "adapter_uses_dora": (ArtifactKind.ADAPTER, adapter_files(use_dora=True)),
    "adapter_config_invalid": (ArtifactKind.ADAPTER, with_changed("adapter_config.json", b"[" * 10_000)),
    "golden_invalid": (ArtifactKind.ADAPTER, with_changed("golden.json", b"{}")),
    "safetensors_invalid": (ArtifactKind.ADAPTER, with_changed("adapter_model.safetensors", b"\x80\x04pickle..")),
    "adapter_rank_mismatch": (
        ArtifactKind.ADAPTER,
        with_changed("adapter_model.safetensors", safetensors_bytes(adapter_shapes(rank=3))),
    ),
    "file_not_allowed": (ArtifactKind.ADAPTER, adapter_files() | {"adapter_model.bin": b"x"}),
    "file_missing": (ArtifactKind.FULL, {"model.safetensors": b"x"}),
    "config_has_code": (ArtifactKind.FULL, full_files(auto_map={"AutoModel": "evil.Model"})),
    "config_invalid": (ArtifactKind.FULL, full_files() | {"config.json": b"[]"}),
    "weights_empty": (ArtifactKind.FULL, full_files() | {"model.safetensors": safetensors_bytes({})}),
    "weights_dtype": (ArtifactKind.FULL, full_files() | {"model.safetensors": safetensors_bytes({"a": (1,)}, "I64")}),
    "tensor_repeated": (
        ArtifactKind.FULL,
        full_files() | {f"model-0000{n}-of-00002.safetensors": safetensors_bytes({"a": (n,)}) for n in (1, 2)},
    ),
}


@pytest.mark.parametrize("code", REJECTED)
async def test_a_bad_artifact_is_refused_and_leaves_nothing(core: Core, code: str) -> None:
    kind, files = REJECTED[code]

    with pytest.raises(InvalidRequestError) as caught:
        await promote(core, files, kind)

    assert caught.value.code == "artifact_rejected"
    assert code in {problem.code for problem in caught.value.problems}
    assert await core.store.list("revisions/") == []


LIES: dict[str, Callable[[Files], Files]] = {
    "size_mismatch": lambda files: files | {"golden.json": files["golden.json"] + b" "},
    "hash_mismatch": lambda files: adapter_files(fill=1),
    "file_missing": lambda files: {name: content for name, content in files.items() if name != "golden.json"},
}


@pytest.mark.parametrize("code", LIES)
async def test_what_was_uploaded_must_be_what_was_declared(each_core: Core, code: str) -> None:
    files = adapter_files()

    with pytest.raises(InvalidRequestError) as caught:
        await promote(each_core, LIES[code](files), declared=declared(files))

    assert {problem.code for problem in caught.value.problems} == {code}
    assert await each_core.store.list("revisions/") == []


async def test_promotion_without_its_base_model_asks_to_try_again(core: Core) -> None:
    files = await upload(core, PREFIX, adapter_files())

    with pytest.raises(UnavailableError, match="not whole"):
        await RegistryService(core).promote(
            kind=ArtifactKind.ADAPTER,
            prefix=PREFIX,
            files=files,
            base_model_id=BASE_ID,
            base_revision="0" * 64,
            max_lora_rank=8,
        )


async def test_files_of_revisions_come_with_urls_that_work(tmp_path: Path, cluster_settings: dict[str, Any]) -> None:
    async with open_core(tmp_path, **cluster_settings) as core:
        base_revision = await publish_base_model(core)
        revision = await publish_tuned_model(core, "ft:toy-base:default::aaaaaaaa", base_revision)
        service = RegistryService(core)

        files = [*await service.revision_files(revision), *await service.revision_files(base_revision)]
        files += await service.base_model_files(BASE_ID)

    assert [file.path for file in files] == [
        "adapter_model.safetensors",
        *["config.json", "model.safetensors"] * 2,
    ]
    async with httpx.AsyncClient() as client:
        for file in files:
            assert hashlib.sha256((await client.get(file.url)).content).hexdigest() == file.sha256


@pytest.mark.parametrize("revision", ["0" * 64, "", "../../files/default/file-1", "0" * 63 + "/"])
async def test_unknown_revisions_are_not_found(core: Core, revision: str) -> None:
    with pytest.raises(NotFoundError):
        await RegistryService(core).revision_files(revision)


async def test_a_damaged_base_manifest_is_not_believed(core: Core) -> None:
    await core.store.put_bytes(f"base_models/{'0' * 64}/manifest.json", b"{}")

    with pytest.raises(UnavailableError, match="damaged"):
        await RegistryService(core).revision_files("0" * 64)


async def test_a_project_sees_its_models_and_every_base_model(each_core: Core) -> None:
    base_revision = await publish_base_model(each_core, "gpt-4o-mini")
    await publish_tuned_model(each_core, "ft:toy-base:default:mine:aaaaaaaa", base_revision)
    await publish_tuned_model(each_core, "ft:toy-base:other:theirs:bbbbbbbb", base_revision, OTHER.project_id)
    service = RegistryService(each_core)

    models = await service.list_models(DEFAULT)

    assert [(model.id, model.owned_by) for model in models] == [
        ("ft:toy-base:default:mine:aaaaaaaa", "default"),
        ("toy-base", "tunesmith"),
        ("gpt-4o-mini", "tunesmith"),
    ]
    assert (await service.get_model(DEFAULT, "gpt-4o-mini")).id == "gpt-4o-mini"
    with pytest.raises(NotFoundError) as caught:
        await service.get_model(DEFAULT, "ft:toy-base:other:theirs:bbbbbbbb")
    assert caught.value.code == "model_not_found"


async def test_a_deleted_model_is_gone_and_its_name_is_never_given_again(each_core: Core) -> None:
    base_revision = await publish_base_model(each_core)
    name = "ft:toy-base:default:mine:aaaaaaaa"
    await publish_tuned_model(each_core, name, base_revision)
    service = RegistryService(each_core)

    with pytest.raises(NotFoundError):
        await service.delete_model(OTHER, name)
    await service.delete_model(DEFAULT, name)
    await publish_tuned_model(each_core, name, base_revision)

    with pytest.raises(NotFoundError):
        await service.get_model(DEFAULT, name)
    with pytest.raises(NotFoundError):
        await service.delete_model(DEFAULT, name)


@pytest.mark.parametrize("name", ["toy-base", "gpt-4o-mini"])
async def test_a_base_model_cannot_be_deleted(core: Core, name: str) -> None:
    await publish_base_model(core, "gpt-4o-mini")

    with pytest.raises(PermissionDeniedError) as caught:
        await RegistryService(core).delete_model(DEFAULT, name)

    assert caught.value.code == "base_model_not_deletable"


@pytest.mark.parametrize("failed", [False, True])
async def test_a_base_model_that_is_not_imported_says_so(core: Core, failed: bool) -> None:
    async with core.database.write() as session:
        await repository.sync_base_model(session, CatalogueEntry(id="big", source="org/big"), 1)
        await session.flush()
        if failed:
            await repository.fail_import(session, "big", "org/big", "secret path /x")
    service = RegistryService(core)

    with pytest.raises(UnavailableError) as caught:
        await service.get_model(DEFAULT, "big")

    assert caught.value.code == ("base_model_import_failed" if failed else "base_model_importing")
    assert "secret" not in caught.value.message
    assert await service.list_models(DEFAULT) == []
    with pytest.raises(UnavailableError):
        await service.base_model_files("big")


async def test_files_of_an_unknown_base_model_are_not_found(core: Core) -> None:
    with pytest.raises(NotFoundError):
        await RegistryService(core).base_model_files("nobody")
