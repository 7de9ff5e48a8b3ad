"""Both stores keep the promises of storage/base.py."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.config import Config

from tests.support.core import open_core
from tests.support.s3_server import BUCKET, S3Server
from tunesmith_server.core import Core
from tunesmith_server.errors import InvalidRequestError, UnavailableError
from tunesmith_server.storage import filesystem, s3
from tunesmith_server.storage.base import ObjectNotFoundError, ObjectStore


async def content_of(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


@pytest.fixture
def store(each_core: Core) -> ObjectStore:
    return each_core.store


async def test_what_is_put_can_be_read(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    big = bytes(range(256)) * 4096 * 12  # more than one part of a multipart upload
    source.write_bytes(big)
    await store.put_file("runs/ftjob-1/e1/big.bin", source)
    await store.put_bytes("runs/ftjob-1/e1/empty", b"")

    assert await content_of(store.read("runs/ftjob-1/e1/big.bin")) == big
    assert await content_of(store.read("runs/ftjob-1/e1/empty")) == b""
    assert await store.size("runs/ftjob-1/e1/big.bin") == len(big)
    assert await store.size("runs/ftjob-1/e1/empty") == 0


async def test_an_object_can_be_replaced(store: ObjectStore) -> None:
    await store.put_bytes("a/b", b"first")
    await store.put_bytes("a/b", b"second")

    assert await content_of(store.read("a/b")) == b"second"


async def test_a_copy_does_not_follow_its_source(store: ObjectStore) -> None:
    await store.put_bytes("runs/x", b"first")
    await store.copy("runs/x", "revisions/y")
    await store.copy("runs/x", "revisions/y")
    await store.put_bytes("runs/x", b"second")

    assert await content_of(store.read("revisions/y")) == b"first"
    await store.delete("runs/x")
    assert await store.list("") == ["revisions/y"]


async def test_absent_objects(store: ObjectStore) -> None:
    with pytest.raises(ObjectNotFoundError):
        await content_of(store.read("a/none"))
    with pytest.raises(ObjectNotFoundError):
        await store.copy("a/none", "a/other")
    assert await store.size("a/none") is None
    await store.delete("a/none")
    assert await store.list("a/") == []


async def test_list_takes_any_prefix(store: ObjectStore) -> None:
    for key in ("files/p/1", "files/p/2", "files/pq/1", "other"):
        await store.put_bytes(key, b"x")

    assert await store.list("files/p/") == ["files/p/1", "files/p/2"]
    assert await store.list("files/p") == ["files/p/1", "files/p/2", "files/pq/1"]
    assert await store.list("") == ["files/p/1", "files/p/2", "files/pq/1", "other"]
    await store.delete("files/p/1")
    await store.delete("files/p/2")
    assert await store.list("files/p") == ["files/pq/1"]


async def test_keys_that_leave_their_place_are_refused(store: ObjectStore) -> None:
    leaving = ("../x", "a/../../x", "/etc/passwd", "a//b", "a/", "", ".drafts/x")
    for key in (*leaving, "a\0b", "a\\b", "ü", "a/\n", "x" * 300):
        with pytest.raises(InvalidRequestError) as raised:
            await store.put_bytes(key, b"x")
        assert raised.value.code == "invalid_object_key"
        with pytest.raises(InvalidRequestError):
            await content_of(store.read(key))
        with pytest.raises(InvalidRequestError):
            await store.copy("a", key)
        with pytest.raises(InvalidRequestError):
            await store.presign_put(key, 60, size=1, sha256="0" * 64)


@pytest.fixture
async def s3_core(tmp_path: Path, cluster_settings: dict[str, str]) -> AsyncIterator[Core]:
    async with open_core(tmp_path / "home", storage_url=cluster_settings["storage_url"]) as core:
        yield core


async def test_s3_takes_exactly_the_announced_bytes_by_url(s3_core: Core) -> None:
    store, content = s3_core.store, b"weights"
    request = await store.presign_put("runs/w", 60, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    async with httpx.AsyncClient() as client:
        # Other bytes of the same size, or of another one, never become the object.
        for body in (b"Weights", b"weight", b"weights and more"):
            headers = dict(request.headers) | {"content-length": str(len(body))}
            refused = await client.put(request.url, content=body, headers=headers)
            assert refused.status_code >= 400, (body, refused.text)
            assert await store.size("runs/w") is None
        accepted = await client.put(request.url, content=content, headers=dict(request.headers))
        assert accepted.status_code == 200, accepted.text
        reading = await store.presign_get("runs/w", 60)
        answer = await client.get(reading.url, headers={"range": "bytes=1-3"})
    assert (answer.status_code, answer.content) == (206, b"eig")


async def test_uploads_in_parts_that_nobody_finished_are_removed(
    s3_core: Core, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = boto3.client("s3", endpoint_url=s3_server.endpoint, config=Config(s3={"addressing_style": "path"}))
    prefix = s3_core.settings.storage_url.removeprefix(f"s3://{BUCKET}/")
    for key in (f"{prefix}/files/a", "elsewhere/b"):
        made = client.create_multipart_upload(Bucket=BUCKET, Key=key)
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=made["UploadId"], PartNumber=1, Body=b"x")

    def open_uploads() -> list[str]:
        found = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [upload["Key"] for upload in found if upload["Key"] in (f"{prefix}/files/a", "elsewhere/b")]

    await s3_core.store.remove_abandoned()
    assert len(open_uploads()) == 2, "a writer may be at it"
    monkeypatch.setattr(s3, "_ABANDONED_AFTER", timedelta(seconds=-60))
    await s3_core.store.remove_abandoned()
    assert open_uploads() == ["elsewhere/b"]


async def test_an_unreachable_s3_is_unavailable(s3_core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    async with open_core(tmp_path / "other", storage_url=f"s3://{BUCKET}/x") as core:
        with pytest.raises(UnavailableError) as raised:
            await core.store.put_bytes("a", b"x")
    assert raised.value.code == "storage_unavailable"


async def test_a_bucket_that_is_not_there_yet_is_empty(s3_core: Core, tmp_path: Path) -> None:
    """SeaweedFS, which Compose and the trial on Kubernetes bring along, makes it with its first object."""
    async with open_core(tmp_path / "other", storage_url="s3://tunesmith-absent/objects") as core:
        assert [page async for page in core.store.scan("files") if page] == []
        await core.store.remove_abandoned()
        with pytest.raises(UnavailableError) as raised:
            await core.store.list("")
    assert raised.value.code == "storage_bucket_missing"


async def test_scan_goes_through_a_folder_and_tells_when_a_key_came_to_be(store: ObjectStore) -> None:
    before = time.time() - 2  # S3 counts in whole seconds
    for key in ("runs/j/1", "runs/j/e1/2", "runs/jj/1", "runsx/1"):
        await store.put_bytes(key, b"x")

    found = [stored async for page in store.scan("runs") for stored in page]
    assert {stored.key for stored in found} == {"runs/j/1", "runs/j/e1/2", "runs/jj/1"}
    assert all(before <= stored.changed_at <= time.time() + 1 for stored in found)
    assert [page async for page in store.scan("nothing") if page] == []


async def test_a_copy_is_as_young_as_its_key(core: Core) -> None:
    await core.store.put_bytes("runs/x", b"first")
    source = core.settings.home / "objects" / "runs" / "x"
    os.utime(source, (1, 1))
    before = time.time() - 1
    await core.store.copy("runs/x", "revisions/r/x")

    ((stored,),) = [page async for page in core.store.scan("revisions")]
    assert stored.changed_at >= before


async def test_scan_is_paged(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_PAGE_OBJECTS", 2)
    for number in range(5):
        await core.store.put_bytes(f"runs/{number}", b"x")

    assert sorted([len(page) async for page in core.store.scan("runs")]) == [1, 2, 2]
