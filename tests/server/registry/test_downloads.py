"""Downloads: a tar of the announced size, with what a folder needs; merged weights are base plus adapter."""

from __future__ import annotations

import io
import json
import struct
import tarfile

import pytest

from tests.support.artifacts import BASE_ID, adapter_files, publish_base_model, upload
from tests.support.factories import PRINCIPAL
from tests.support.registry import publish_tuned_model
from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import RevisionRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError, UnavailableError
from tunesmith_server.registry.downloads import Download, DownloadsService

TUNED = f"ft:{BASE_ID}:default:mine:aaaaaaaa"
# Each of its bytes: a float32 of 0.747, so that with rank 2 and scale 2 every delta is the same.
FILL = 0x3F
VALUE = struct.unpack("<f", bytes([FILL] * 4))[0]


async def publish(
    core: Core, kind: str = "adapter", name: str = TUNED, project_id: str = "default", **config: object
) -> None:
    """A tuned model with the files of an adapter, on a base that has a tokenizer."""
    core.settings.spool.mkdir(parents=True, exist_ok=True)
    base_revision = await publish_base_model(core, texts={"tokenizer.json": b"{}", "README.md": b"read"})
    revision_id = await publish_tuned_model(core, name, base_revision, project_id)
    files = await upload(core, f"revisions/{revision_id}", adapter_files(FILL, **config))
    async with core.database.write() as session:
        row = await session.get(RevisionRow, revision_id)
        assert row is not None
        row.kind = kind
        row.files = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in files]


async def unpacked(download: Download) -> dict[str, bytes]:
    """The files, and the proof that the size was right."""
    content = b"".join([chunk async for chunk in download.chunks])
    assert len(content) == download.size
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


async def test_an_adapter_comes_with_its_own_files_and_no_prompts(each_core: Core) -> None:
    await publish(each_core)
    files = await unpacked(await DownloadsService(each_core).open(PRINCIPAL, TUNED, merged=False))
    assert list(files) == ["adapter_config.json", "tokenizer.json", "adapter_model.safetensors"]
    assert files["adapter_model.safetensors"] == adapter_files(FILL)["adapter_model.safetensors"]


async def test_whole_weights_are_the_same_merged_or_not(core: Core) -> None:
    await publish(core, "full")
    service = DownloadsService(core)
    plain = await unpacked(await service.open(PRINCIPAL, TUNED, merged=False))
    assert plain == await unpacked(await service.open(PRINCIPAL, TUNED, merged=True))


async def test_merged_weights_are_the_base_with_the_adapter_added(each_core: Core) -> None:
    await publish(each_core)
    files = await unpacked(await DownloadsService(each_core).open(PRINCIPAL, TUNED, merged=True))

    assert list(files) == ["README.md", "config.json", "tokenizer.json", "model.safetensors"]
    assert json.loads(files["config.json"]) == {"max_position_embeddings": 64}
    weights = files["model.safetensors"]
    start = 8 + int.from_bytes(weights[:8], "little")
    numbers = struct.unpack(f"<{(len(weights) - start) // 4}f", weights[start:])
    embedding = 32 * 8
    assert set(numbers[:embedding]) == {0.0}
    assert numbers[embedding:] == pytest.approx([2 * 2 * VALUE**2] * (8 * 8 + 16 * 8))
    assert not list(each_core.settings.spool.iterdir()), "nothing is left behind"


async def test_clients_that_stand_still_hold_up_nobody_in_another_project(core: Core) -> None:
    theirs = TUNED.replace("default", "other")
    await publish(core)
    await publish(core, name=theirs, project_id="other")
    service = DownloadsService(core)
    still = [await service.open(PRINCIPAL, TUNED, merged=True) for _ in range(2)]
    for download in still:
        while core.settings.spool.stat().st_nlink == 2 + still.index(download):  # until it has begun to merge
            await anext(download.chunks)
    other = Principal(project_id="other", key_id="key-2")
    assert "model.safetensors" in await unpacked(await service.open(other, theirs, merged=True))


async def test_a_merge_that_fails_ends_the_download(core: Core) -> None:
    await publish(core, fan_in_fan_out=True)
    download = await DownloadsService(core).open(PRINCIPAL, TUNED, merged=True)
    with pytest.raises(UnavailableError) as caught:
        await unpacked(download)
    assert caught.value.code == "merge_failed"
    assert not list(core.settings.spool.iterdir())


async def test_a_base_model_that_is_gone_from_storage_is_named(core: Core) -> None:
    await publish(core)
    for key in await core.store.list("base_models/"):
        await core.store.delete(key)
    with pytest.raises(UnavailableError) as caught:
        await DownloadsService(core).open(PRINCIPAL, TUNED, merged=False)
    assert caught.value.code == "base_model_damaged"


async def test_only_a_projects_own_tuned_models_can_be_taken_away(core: Core) -> None:
    await publish(core)
    service = DownloadsService(core)
    with pytest.raises(NotFoundError):
        await service.open(Principal(project_id="other", key_id="k"), TUNED, merged=False)
    with pytest.raises(NotFoundError):
        await service.open(PRINCIPAL, "ft:nothing", merged=False)
    with pytest.raises(InvalidRequestError) as caught:
        await service.open(PRINCIPAL, BASE_ID, merged=True)
    assert caught.value.code == "not_a_tuned_model"
