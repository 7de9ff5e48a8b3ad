"""Downloads: a tar of the announced size, with what a folder needs; merged weights are base plus adapter."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import tarfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message

from tests.support.artifacts import BASE_ID, adapter_files, publish_base_model, upload
from tests.support.asgi_server import serving
from tests.support.factories import PRINCIPAL
from tests.support.registry import publish_tuned_model
from tunesmith import AsyncTunesmith
from tunesmith._http import AsyncTransport
from tunesmith_server.auth import Authenticator, Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import RevisionRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError, QuotaExceededError, UnavailableError
from tunesmith_server.http_app import create_http_app
from tunesmith_server.registry.downloads import Download, DownloadsService
from tunesmith_server.registry.endpoints import create_router
from tunesmith_server.registry.imports import ImportsService
from tunesmith_server.registry.service import RegistryService

TUNED = f"ft:{BASE_ID}:default:mine:aaaaaaaa"
# Each of its bytes: a float32 of 0.747, so that with rank 2 and scale 2 every delta is the same.
FILL = 0x3F
VALUE = struct.unpack("<f", bytes([FILL] * 4))[0]


async def publish(
    core: Core, kind: str = "adapter", name: str = TUNED, project_id: str = "default", **config: object
) -> None:
    """A tuned model with the files of an adapter, on a base that has a tokenizer."""
    core.settings.spool.mkdir(parents=True, exist_ok=True)
    base_revision = await publish_base_model(
        core, texts={"tokenizer.json": b"{}", "README.md": b"read", "LICENSE": b"may"}
    )
    revision_id = await publish_tuned_model(core, name, base_revision, project_id)
    files = await upload(core, f"revisions/{revision_id}", adapter_files(FILL, **config))
    async with core.database.write() as session:
        row = await session.get(RevisionRow, revision_id)
        assert row is not None
        row.kind = kind
        row.files = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in files]


async def content_of(download: Download, start: int = 0) -> bytes:
    async with download.opened(start) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def unpacked(download: Download) -> dict[str, bytes]:
    """The files, and the proof that the size was right."""
    content = await content_of(download)
    assert len(content) == download.size
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


async def test_an_adapter_comes_with_its_own_files_and_no_prompts(each_core: Core) -> None:
    await publish(each_core)
    files = await unpacked(await DownloadsService(each_core).open(PRINCIPAL, TUNED, merged=False))
    assert list(files) == ["LICENSE", "adapter_config.json", "tokenizer.json", "adapter_model.safetensors"]
    assert files["adapter_model.safetensors"] == adapter_files(FILL)["adapter_model.safetensors"]


async def test_whole_weights_are_the_same_merged_or_not(core: Core) -> None:
    await publish(core, "full")
    service = DownloadsService(core)
    licensed = await service.open(PRINCIPAL, TUNED, merged=False)
    plain = await unpacked(licensed)
    assert plain == await unpacked(await service.open(PRINCIPAL, TUNED, merged=True))
    assert plain["LICENSE"] == b"may", "the base's"
    for key in await core.store.list("base_models/"):
        await core.store.delete(key)
    without = await service.open(PRINCIPAL, TUNED, merged=False)
    assert plain.keys() - {"LICENSE"} == {*await unpacked(without)}
    assert without.etag != licensed.etag, "it does not go on with the other's bytes"


async def test_merged_weights_are_the_base_with_the_adapter_added(each_core: Core) -> None:
    await publish(each_core)
    files = await unpacked(await DownloadsService(each_core).open(PRINCIPAL, TUNED, merged=True))

    assert list(files) == ["LICENSE", "README.md", "config.json", "tokenizer.json", "model.safetensors"]
    assert json.loads(files["config.json"]) == {"max_position_embeddings": 64}
    weights = files["model.safetensors"]
    start = 8 + int.from_bytes(weights[:8], "little")
    numbers = struct.unpack(f"<{(len(weights) - start) // 4}f", weights[start:])
    embedding = 32 * 8
    assert set(numbers[:embedding]) == {0.0}
    assert numbers[embedding:] == pytest.approx([2 * 2 * VALUE**2] * (8 * 8 + 16 * 8))
    assert not list(each_core.settings.spool.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("merged", [False, True])
async def test_a_download_goes_on_from_any_byte(core: Core, merged: bool) -> None:
    await publish(core)
    service = DownloadsService(core)
    download = await service.open(PRINCIPAL, TUNED, merged=merged)
    content = await content_of(download)
    for start in (1, 511, 512, 1024, len(content) - 4000, len(content) - 1025, len(content) - 1024, len(content) - 1):
        assert await content_of(download, start) == content[start:], start
    assert (await service.open(PRINCIPAL, TUNED, merged=merged)).etag == download.etag
    assert (await service.open(PRINCIPAL, TUNED, merged=not merged)).etag != download.etag


async def test_what_lies_before_the_first_byte_asked_for_is_not_read(core: Core) -> None:
    await publish(core)
    download = await DownloadsService(core).open(PRINCIPAL, TUNED, merged=False)
    for key in await core.store.list(""):
        await core.store.delete(key)
    assert await content_of(download, download.size - 1024) == bytes(1024)


async def test_clients_that_stand_still_hold_up_nobody_else(core: Core) -> None:
    theirs = TUNED.replace("default", "other")
    await publish(core)
    await publish(core, name=theirs, project_id="other")
    service = DownloadsService(core)
    third = await service.open(PRINCIPAL, TUNED, merged=True)
    async with AsyncExitStack() as still:
        for number in range(2):
            download = await service.open(PRINCIPAL, TUNED, merged=True)
            chunks = await still.enter_async_context(download.opened())
            while core.settings.spool.stat().st_nlink == 2 + number:  # until it has begun to merge
                await anext(chunks)
        other = Principal(project_id="other", key_id="key-2")
        assert "model.safetensors" in await unpacked(await service.open(other, theirs, merged=True))
        assert await unpacked(await service.open(PRINCIPAL, TUNED, merged=False)), "it needs no merge"
        with pytest.raises(QuotaExceededError) as caught:
            await unpacked(third)
        assert (caught.value.code, caught.value.retry_after) == ("too_many_downloads", 30)
    assert "model.safetensors" in await unpacked(third), "who has ended makes room"


def served(core: Core, standstill_seconds: float = 60) -> ASGIApp:
    """The routes of models, for keys of the default project."""

    class Keys:
        async def find_principal(self, key: str) -> Principal | None:
            return PRINCIPAL

    router = create_router(RegistryService(core), ImportsService(core), DownloadsService(core), standstill_seconds)
    return create_http_app(core, Authenticator(Keys(), core.signer), [router])


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    headers = {"Authorization": "Bearer key"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers)


class Reader:
    """A client of the merged archive that takes the head and `chunks` pieces, and then does something else."""

    def __init__(self, chunks: int) -> None:
        self._left = 1 + chunks
        self.has_enough = asyncio.Event()
        self.leaves = asyncio.Event()

    async def download(self, app: ASGIApp) -> None:
        path, query = f"/v1/model_archives/{TUNED}", b"merged=true"
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
        scope |= {"query_string": query, "headers": [(b"authorization", b"Bearer key")], "root_path": ""}
        await app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._left -= 1
        if self._left < 0:
            self.has_enough.set()
            await asyncio.Event().wait()


async def test_who_finds_no_turn_is_told_when_to_come_back(core: Core) -> None:
    await publish(core)
    app = served(core)
    readers = [Reader(chunks) for chunks in (0, 7)]
    tasks = [asyncio.create_task(reader.download(app)) for reader in readers]
    for reader in readers:
        await reader.has_enough.wait()
    async with client_of(app) as client:
        answer = await client.get(f"/v1/model_archives/{TUNED}?merged=true")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
        assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("too_many_downloads", "merged")
        assert (await client.get(f"/v1/model_archives/{TUNED}")).status_code == 200
        for reader in readers:
            reader.leaves.set()
        await asyncio.gather(*tasks)
        assert (await client.get(f"/v1/model_archives/{TUNED}?merged=true")).status_code == 200


@pytest.mark.parametrize("chunks", [0, 1, 7])
async def test_a_merge_is_given_up_whose_client_takes_nothing(core: Core, chunks: int) -> None:
    await publish(core)
    app = served(core, standstill_seconds=0)
    for _ in range(3):
        await Reader(chunks).download(app)
    async with asyncio.timeout(30):
        while list(core.settings.spool.iterdir()):  # noqa: ASYNC110 (a process that ends)
            await asyncio.sleep(0.01)


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


# What a thread has just opened for a client that is gone already is closed by Python, which complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("merged", [False, True])
async def test_the_sdk_goes_on_where_connections_break(
    core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    await publish(core)
    wanted = await unpacked(await DownloadsService(core).open(PRINCIPAL, TUNED, merged=merged))
    whole, connections = AsyncTransport.iterate, []

    async def break_off(transport: AsyncTransport, response: httpx.Response) -> AsyncIterator[bytes]:
        connections.append(response.status_code)
        left = 1_000
        async for chunk in whole(transport, response):
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                raise httpx.ReadError("broken off")

    monkeypatch.setattr(AsyncTransport, "iterate", break_off)
    async with serving(served(core)) as url, AsyncTunesmith(base_url=url, api_key="key") as client:
        paths = await client.models.download(TUNED, tmp_path / "model", merged=merged)
    assert {path.name: path.read_bytes() for path in paths} == wanted
    assert connections == [200, *[206] * (len(connections) - 1)]
    assert len(connections) > 2
