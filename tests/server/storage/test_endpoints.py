"""Signed URLs of the folder store: exactly what was signed, until it expires, whole objects or none."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest

from tests.support.asgi_server import serving
from tests.support.clock import MovableClock
from tests.support.core import open_core
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.http_app import create_http_app
from tunesmith_server.projects.service import ProjectsService
from tunesmith_server.storage.base import SignedRequest
from tunesmith_server.storage.endpoints import create_router
from tunesmith_server.storage.filesystem import FilesystemStore

CONTENT = b"weights of a model"


@pytest.fixture
async def core(tmp_path: Path, clock: MovableClock) -> AsyncIterator[Core]:
    # A body limit far below the objects' size, since signed sizes are the limit here.
    async with open_core(tmp_path / "home", clock, max_body_bytes=10, public_url="http://test") as made:
        yield made


@pytest.fixture
async def client(core: Core) -> AsyncIterator[httpx.AsyncClient]:
    assert isinstance(core.store, FilesystemStore)
    authenticator = Authenticator(ProjectsService(core), core.signer)
    app = create_http_app(core, authenticator, [create_router(core.store)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as made:
        yield made


async def sign_put(core: Core, content: bytes = CONTENT, key: str = "runs/ftjob-1/e1/w.bin") -> SignedRequest:
    return await core.store.presign_put(key, 60, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def changed(url: str, **query: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=urlencode(dict(parse_qsl(parts.query)) | query)).geturl()


async def test_an_object_goes_in_and_comes_out_by_url(core: Core, client: httpx.AsyncClient) -> None:
    request = await sign_put(core)
    put = await client.put(request.url, content=CONTENT, headers=dict(request.headers))
    assert put.status_code == 200, put.text
    reading = await core.store.presign_get("runs/ftjob-1/e1/w.bin", 60)
    whole = await client.get(reading.url)
    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert whole.headers["accept-ranges"] == "bytes"
    part = await client.get(reading.url, headers={"range": "bytes=8-9"})
    assert (part.status_code, part.content) == (206, b"of")
    assert part.headers["content-range"] == f"bytes 8-9/{len(CONTENT)}"
    rest = await client.get(reading.url, headers={"range": "bytes=11-"})
    assert rest.content == b"a model"
    beyond = await client.get(reading.url, headers={"range": "bytes=100-"})
    assert beyond.status_code == 416


async def test_repeating_a_put_is_harmless(core: Core, client: httpx.AsyncClient) -> None:
    request = await sign_put(core)
    for _ in range(2):
        assert (await client.put(request.url, content=CONTENT)).status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (CONTENT[:-1], "size_mismatch"),
        (CONTENT + b"!", "size_mismatch"),
        (CONTENT.upper(), "sha256_mismatch"),
        (b"", "size_mismatch"),
    ],
)
async def test_other_bytes_never_become_the_object(
    core: Core, client: httpx.AsyncClient, body: bytes, code: str
) -> None:
    request = await sign_put(core)
    assert code_of(await client.put(request.url, content=body)) == (400, code)
    assert await core.store.list("") == []
    assert_no_drafts(core)


async def test_a_stream_without_end_is_cut_off(core: Core, client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield b"x" * 1000

    request = await sign_put(core)
    assert code_of(await client.put(request.url, content=endless())) == (400, "size_mismatch")
    assert sent <= 5000


@pytest.mark.parametrize("change", [{"size": "5"}, {"sha256": "0" * 64}, {"expires": "9999999999"}, {"signature": "x"}])
async def test_a_changed_url_is_refused(core: Core, client: httpx.AsyncClient, change: dict[str, str]) -> None:
    request = await sign_put(core)
    answer = await client.put(changed(request.url, **change), content=CONTENT)
    assert code_of(answer) == (403, "invalid_signature")


async def test_a_url_works_for_one_key_and_one_method(core: Core, client: httpx.AsyncClient) -> None:
    await core.store.put_bytes("runs/ftjob-2/e1/w.bin", b"another job's")
    put, get = await sign_put(core), await core.store.presign_get("runs/ftjob-1/e1/w.bin", 60)
    for url in (put.url, get.url):
        assert code_of(await client.get(url.replace("ftjob-1", "ftjob-2"))) == (403, "invalid_signature")
    assert code_of(await client.get(put.url)) == (403, "invalid_signature")
    query = urlsplit(put.url).query
    assert code_of(await client.put(f"/internal/objects/runs/ftjob-1/e1/../../../x?{query}", content=CONTENT))[0] in (
        403,
        404,
    )
    assert code_of(await client.get("/internal/objects/runs/ftjob-1/e1/w.bin"))[0] == 400


async def test_a_url_expires(core: Core, client: httpx.AsyncClient, clock: MovableClock) -> None:
    request = await sign_put(core)
    clock.advance(61)
    assert code_of(await client.put(request.url, content=CONTENT)) == (403, "url_expired")


async def test_an_absent_object(core: Core, client: httpx.AsyncClient) -> None:
    reading = await core.store.presign_get("runs/none", 60)
    assert code_of(await client.get(reading.url)) == (404, "object_not_found")


async def test_a_full_disk_is_told_and_leaves_nothing(
    core: Core, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    request = await sign_put(core)
    monkeypatch.setattr(os, "fsync", full)
    assert code_of(await client.put(request.url, content=CONTENT)) == (507, "storage_full")
    monkeypatch.undo()
    assert await core.store.list("") == []
    assert_no_drafts(core)


async def test_a_put_that_breaks_off_leaves_nothing(core: Core) -> None:
    assert isinstance(core.store, FilesystemStore)
    app = create_http_app(core, Authenticator(ProjectsService(core), core.signer), [create_router(core.store)])
    request = await sign_put(core)
    target = urlsplit(request.url)

    async def broken() -> AsyncIterator[bytes]:
        yield CONTENT[:5]
        raise ConnectionResetError

    async with serving(app) as url, httpx.AsyncClient() as client:
        with pytest.raises(ConnectionResetError):
            await client.put(f"{url}{target.path}?{target.query}", content=broken(), headers=dict(request.headers))
    assert await core.store.list("") == []
    assert_no_drafts(core)


def assert_no_drafts(core: Core) -> None:
    assert list((core.settings.home / "objects" / ".drafts").iterdir()) == []
