from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.inference.gateway import adapter_files, full_files, make_base
from tests.support.serving_control_plane import SERVICE_TOKEN, ServingControlPlane
from tunesmith_inference.registry_client import connect
from tunesmith_inference.revisions import NotFetched, RevisionCache, RevisionRefused
from tunesmith_inference.router import Kind
from tunesmith_proto.registry.v1 import serving_pb2
from tunesmith_server.registry import manifest
from tunesmith_server.registry.manifest import ManifestFile


@pytest.fixture
async def control_plane() -> AsyncIterator[ServingControlPlane]:
    async with ServingControlPlane().running() as running:
        yield running


@pytest.fixture
async def cache(control_plane: ServingControlPlane, tmp_path: Path) -> AsyncIterator[RevisionCache]:
    async with connect(control_plane.address, SERVICE_TOKEN) as registry:
        yield RevisionCache(tmp_path, registry.revision_files)


async def test_a_revision_is_fetched_once_whole_and_read_only(
    cache: RevisionCache, control_plane: ServingControlPlane, tmp_path: Path
) -> None:
    files = adapter_files("tuned")
    revision = control_plane.add_revision(files)
    folder = await cache.tuned_folder(revision, Kind.ADAPTER)
    assert folder == tmp_path / "revisions" / revision
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o444 for path in folder.iterdir())
    assert await cache.tuned_folder(revision, Kind.ADAPTER) == folder
    assert control_plane.downloads == len(files)
    assert [path.name for path in folder.parent.iterdir()] == [revision]


async def test_two_fetchers_of_one_revision_do_not_disturb_each_other(
    cache: RevisionCache, control_plane: ServingControlPlane
) -> None:
    revision = control_plane.add_revision(adapter_files("tuned"))
    first, second = await asyncio.gather(*(cache.tuned_folder(revision, Kind.ADAPTER) for _ in range(2)))
    assert first == second
    assert [path.name for path in first.parent.iterdir()] == [revision]


async def test_full_weights_may_come_in_shards(cache: RevisionCache, control_plane: ServingControlPlane) -> None:
    files = full_files("tuned") | {"model-00001-of-00002.safetensors": b"a", "chat_template.jinja": b"t"}
    folder = await cache.tuned_folder(control_plane.add_revision(files), Kind.FULL)
    assert (folder / "model-00001-of-00002.safetensors").read_bytes() == b"a"


@pytest.mark.parametrize(
    "path",
    [
        "../escape.json",
        "/etc/passwd",
        "adapter_model.bin",
        "training_state.safetensors",
        "sub/adapter_config.json",
        "modeling.py",
        "adapter_config.json\0",
        "",
        ".",
        "model.safetensors",
    ],
)
async def test_anything_else_is_not_let_in(
    cache: RevisionCache, control_plane: ServingControlPlane, tmp_path: Path, path: str
) -> None:
    revision = control_plane.add_revision(adapter_files("tuned") | {path: b"evil"})
    with pytest.raises(RevisionRefused, match="does not belong"):
        await cache.tuned_folder(revision, Kind.ADAPTER)
    assert control_plane.downloads == 0
    assert not (tmp_path / "revisions").exists()


async def test_a_missing_file_is_refused(cache: RevisionCache, control_plane: ServingControlPlane) -> None:
    files = adapter_files("tuned")
    del files["golden.json"]
    with pytest.raises(RevisionRefused, match=r"golden\.json is missing"):
        await cache.tuned_folder(control_plane.add_revision(files), Kind.ADAPTER)


@pytest.mark.parametrize(("size", "sha256"), [(5, "0" * 64), (2, None)])
async def test_other_bytes_than_announced_are_refused(
    cache: RevisionCache, control_plane: ServingControlPlane, tmp_path: Path, size: int, sha256: str | None
) -> None:
    files = adapter_files("tuned")
    revision = control_plane.add_revision(files)
    real = (await cache._files_of(revision))[0]
    control_plane.announced[real.path] = serving_pb2.RevisionFile(
        path=real.path, size=size, sha256=sha256 or real.sha256, url=real.url
    )
    with pytest.raises(RevisionRefused, match="not what was announced"):
        await cache.tuned_folder(revision, Kind.ADAPTER)
    assert list((tmp_path / "revisions").iterdir()) == []


@pytest.mark.parametrize("trouble", ["file gone", "short", "unknown revision", "url"])
async def test_what_may_work_later_is_told_apart(
    cache: RevisionCache, control_plane: ServingControlPlane, tmp_path: Path, trouble: str
) -> None:
    files = adapter_files("tuned")
    revision = control_plane.add_revision(files)
    real = (await cache._files_of(revision))[0]
    announced = serving_pb2.RevisionFile(path=real.path, size=real.size, sha256=real.sha256, url=real.url)
    if trouble == "file gone":
        announced.url += "x"
    elif trouble == "short":
        announced.size += 1
    elif trouble == "url":
        announced.url = "file:///etc/passwd"
    control_plane.announced[real.path] = announced
    if trouble == "unknown revision":
        revision = "f" * 64
    with pytest.raises(NotFetched):
        await cache.tuned_folder(revision, Kind.ADAPTER)
    folder = tmp_path / "revisions"
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("revision", ["", "..", "a" * 63, "A" * 64, "a" * 64 + "/.."])
async def test_a_revision_is_named_by_its_hash_only(cache: RevisionCache, revision: str) -> None:
    with pytest.raises(RevisionRefused):
        await cache.tuned_folder(revision, Kind.ADAPTER)
    with pytest.raises(RevisionRefused):
        await cache.base_folder(revision)


async def test_a_base_model_is_fetched_where_nobody_has_put_it(
    cache: RevisionCache, control_plane: ServingControlPlane, tmp_path: Path
) -> None:
    files = {"config.json": b"{}", "model-1.safetensors": b"weights", "merges.txt": b"m", "chat_template.jinja": b"t"}
    folder = await cache.base_folder(control_plane.add_revision(files))
    assert folder.parent == tmp_path / "base_models"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    there = make_base(tmp_path, "b" * 64)
    downloads = control_plane.downloads
    assert await cache.base_folder("b" * 64) == there
    assert control_plane.downloads == downloads


async def test_what_the_control_plane_takes_of_a_base_model_is_fetched(
    cache: RevisionCache, control_plane: ServingControlPlane
) -> None:
    names = ["config.json", "LICENSE", *(f"other{suffix}" for suffix in manifest._BASE_SUFFIXES)]
    assert not manifest.base_file_problems([ManifestFile(name, 1, "a" * 64) for name in names])
    folder = await cache.base_folder(control_plane.add_revision(dict.fromkeys(names, b"{}")))
    assert {path.name for path in folder.iterdir()} == set(names)


@pytest.mark.parametrize("path", ["modeling.py", "pytorch_model.bin", "../config.json", "sub/config.json", ".json"])
async def test_a_base_model_brings_no_code_and_stays_in_its_folder(
    cache: RevisionCache, control_plane: ServingControlPlane, path: str
) -> None:
    with pytest.raises(RevisionRefused, match="does not belong"):
        await cache.base_folder(control_plane.add_revision({"config.json": b"{}", path: b"evil"}))
    assert control_plane.downloads == 0


async def test_a_disk_that_takes_no_more_is_no_verdict_on_the_model(
    cache: RevisionCache, control_plane: ServingControlPlane, tmp_path: Path
) -> None:
    (tmp_path / "base_models").write_bytes(b"a file where the folder should be")
    with pytest.raises(NotFetched, match="File exists"):
        await cache.base_folder(control_plane.add_revision({"config.json": b"{}"}))


async def test_a_zero_adapter_is_made_once_the_base_model_is_there(cache: RevisionCache, tmp_path: Path) -> None:
    with pytest.raises(NotFetched):
        await cache.zero_adapter_folder("b" * 64)
    make_base(tmp_path, "b" * 64)
    folder = await cache.zero_adapter_folder("b" * 64)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert await cache.zero_adapter_folder("b" * 64) == folder
