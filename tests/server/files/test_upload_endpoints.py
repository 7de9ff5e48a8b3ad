"""Uploads over REST: the official client, parts in parallel, every refusal, bounded memory, nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from tests.support.asgi_server import serving
from tests.support.core import open_core
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.db.tables import ProjectRow
from tunesmith_server.files import endpoints, upload_endpoints
from tunesmith_server.files.service import FilesService
from tunesmith_server.files.upload_service import UploadsService
from tunesmith_server.http_app import create_http_app
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService

ROW = b'{"prompt": "2+2=", "completion": "4"}\n'
DATASET = b"".join(ROW.replace(b"2+2", str(number).encode() + b"+2") for number in range(300))
MEBIBYTE = 1024 * 1024


async def app_of(core: Core) -> tuple[FastAPI, str]:
    """An app with files and uploads, and a key of the default project."""
    projects = ProjectsService(core)
    await projects.ensure_first_key()
    new = await projects.create_key(DEFAULT_PROJECT, "test")
    routers = [endpoints.create_router(FilesService(core)), upload_endpoints.create_router(UploadsService(core))]
    return create_http_app(core, Authenticator(projects, core.signer), routers), new.key


def client_of(app: FastAPI, key: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test/v1", headers=headers)


@pytest.fixture
async def client(core: Core) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(*await app_of(core)) as made:
        yield made


@pytest.fixture
async def each_client(each_core: Core) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(*await app_of(each_core)) as made:
        yield made


async def begin(client: httpx.AsyncClient, content: bytes = DATASET, **changes: Any) -> str:
    body = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": len(content), "mime_type": "text/jsonl"} | changes
    answer = await client.post("/uploads", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def send(client: httpx.AsyncClient, upload_id: str, content: bytes) -> httpx.Response:
    return await client.post(f"/uploads/{upload_id}/parts", files={"data": content})


async def add(client: httpx.AsyncClient, upload_id: str, content: bytes) -> str:
    answer = await send(client, upload_id, content)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def complete(client: httpx.AsyncClient, upload_id: str, part_ids: list[str], **more: Any) -> httpx.Response:
    return await client.post(f"/uploads/{upload_id}/complete", json={"part_ids": part_ids} | more)


def code_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


async def assert_nothing_left(core: Core) -> None:
    assert await core.store.list("files/") + await core.store.list("uploads/") == []
    assert list((core.settings.home / "uploads").iterdir()) == []


async def test_the_openai_client_works_unmodified(each_core: Core, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(DATASET)
    app, key = await app_of(each_core)
    async with serving(app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        upload = await client.uploads.upload_file_chunked(
            file=path,
            mime_type="text/jsonl",
            purpose="fine-tune",
            part_size=len(DATASET) // 3,
            md5=hashlib.md5(DATASET).hexdigest(),
        )
        assert (upload.status, upload.bytes, upload.filename) == ("completed", len(DATASET), "rows.jsonl")
        assert upload.file is not None
        file = await client.files.wait_for_processing(upload.file.id)
        assert (file.filename, file.bytes, file.status) == ("rows.jsonl", len(DATASET), "processed")
        assert (await client.files.content(file.id)).read() == DATASET
        given_up = await client.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="batch")
        assert (await client.uploads.cancel(given_up.id)).status == "cancelled"
    assert await each_core.store.list("uploads/") == []


async def test_uploads_and_parts_look_as_strict_clients_expect(client: httpx.AsyncClient) -> None:
    expires_after = {"anchor": "created_at", "seconds": 3600}
    upload_id = await begin(client, ROW, expires_after=expires_after)
    assert upload_id.startswith("upload_")
    shown = {
        "id": upload_id,
        "object": "upload",
        "bytes": len(ROW),
        "created_at": 1_800_000_000,
        "filename": "a.jsonl",
        "purpose": "fine-tune",
        "status": "pending",
        "expires_at": 1_800_003_600,
        "file": None,
    }
    part = (await send(client, upload_id, ROW)).json()
    sha256 = hashlib.sha256(ROW).hexdigest()
    assert part.pop("id").startswith("part_")
    assert part == {
        "object": "upload.part",
        "created_at": 1_800_000_000,
        "upload_id": upload_id,
        "bytes": len(ROW),
        "sha256": sha256,
    }
    # What a client that was cut off asks for, to go on.
    pending = (await client.get(f"/uploads/{upload_id}")).json()
    (stored,) = pending.pop("parts")
    assert pending == shown
    assert (stored["bytes"], stored["sha256"]) == (len(ROW), sha256)

    completed = (await complete(client, upload_id, [stored["id"]])).json()
    file = completed.pop("file")
    assert completed == {key: value for key, value in shown.items() if key != "file"} | {"status": "completed"}
    assert (file["object"], file["bytes"], file["expires_at"]) == ("file", len(ROW), 1_800_003_600)
    assert (await client.get(f"/files/{file['id']}")).json() == file
    assert (await client.get(f"/uploads/{upload_id}")).json() == completed | {"file": file, "parts": []}


async def test_parts_come_in_parallel_and_count_in_the_order_of_the_completion(
    each_client: httpx.AsyncClient, each_core: Core
) -> None:
    upload_id = await begin(each_client)
    size = len(DATASET) // 8 + 1
    pieces = [DATASET[start : start + size] for start in range(0, len(DATASET), size)]
    part_ids = await asyncio.gather(*(add(each_client, upload_id, piece) for piece in reversed(pieces)))
    in_order = list(reversed(part_ids))
    first, second = await asyncio.gather(
        complete(each_client, upload_id, in_order), complete(each_client, upload_id, in_order)
    )
    third = await complete(each_client, upload_id, in_order)
    assert first.status_code == 200, first.text
    assert first.json() == second.json() == third.json()
    content = await each_client.get(f"/files/{first.json()['file']['id']}/content")
    assert content.content == DATASET
    assert len((await each_client.get("/files")).json()["data"]) == 1
    assert len(await each_core.store.list("files/")) == 1
    assert await each_core.store.list("uploads/") == []


async def test_two_replicas_that_complete_at_once_make_one_file(each_core: Core) -> None:
    app, key = await app_of(each_core)
    twin, _ = await app_of(each_core)
    async with client_of(app, key) as one, client_of(twin, key) as other:
        upload_id = await begin(one)
        part_id = await add(one, upload_id, DATASET)
        answers = await asyncio.gather(complete(one, upload_id, [part_id]), complete(other, upload_id, [part_id]))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        assert len((await one.get("/files")).json()["data"]) == 1
    assert len(await each_core.store.list("files/")) == 1


async def test_wrong_parts_are_named_and_the_upload_goes_on(client: httpx.AsyncClient, core: Core) -> None:
    half = len(DATASET) // 2
    upload_id, foreign = await begin(client), await begin(client)
    front, back = await add(client, upload_id, DATASET[:half]), await add(client, upload_id, DATASET[half:])
    strange = await add(client, foreign, DATASET[half:])
    md5 = hashlib.md5(DATASET).hexdigest()
    for part_ids, more, expected in (
        ([], {}, ("missing_required_parameter", "part_ids")),
        ([front, front], {}, ("duplicate_part", "part_ids")),
        ([front, strange], {}, ("part_not_found", "part_ids")),
        ([front, "part_none"], {}, ("part_not_found", "part_ids")),
        ([front], {}, ("upload_size_mismatch", "part_ids")),
        ([back, front], {"md5": md5}, ("md5_mismatch", "md5")),
        ([front, back], {"md5": "0" * 31}, ("invalid_value", "md5")),
        ([front, back], {"sha": "0"}, ("unknown_parameter", "sha")),
        ("all", {}, ("invalid_type", "part_ids")),
    ):
        answer = await complete(client, upload_id, part_ids, **more)  # type: ignore[arg-type]  # one is no list
        assert code_of(answer) == (400, *expected), answer.text
    assert await core.store.list("files/") == []
    assert (await complete(client, upload_id, [front, back], md5=md5.upper())).status_code == 200


async def test_a_bad_dataset_is_told_whole_and_leaves_nothing(each_client: httpx.AsyncClient, each_core: Core) -> None:
    content = ROW + b"{\n" + ROW + b"[]\n"
    upload_id = await begin(each_client, content)
    # The cut lies within a line: only the whole file is judged.
    parts = [await add(each_client, upload_id, content[:20]), await add(each_client, upload_id, content[20:])]
    answer = await complete(each_client, upload_id, parts)
    assert code_of(answer) == (400, "invalid_json", "file")
    assert [(problem["line"], problem["code"]) for problem in answer.json()["error"]["problems"]] == [
        (2, "invalid_json"),
        (4, "not_an_object"),
    ]
    assert (await each_client.get(f"/uploads/{upload_id}")).json()["status"] == "cancelled"
    await assert_nothing_left(each_core)


async def test_an_ended_upload_takes_nothing_more(client: httpx.AsyncClient, core: Core) -> None:
    completed = await begin(client, ROW)
    await complete(client, completed, [await add(client, completed, ROW)])
    cancelled = await begin(client, ROW)
    part = await add(client, cancelled, ROW)
    assert (await client.post(f"/uploads/{cancelled}/cancel")).json()["status"] == "cancelled"
    assert (await client.post(f"/uploads/{cancelled}/cancel")).json()["status"] == "cancelled"

    for answer, code in (
        (await send(client, completed, ROW), "upload_completed"),
        (await client.post(f"/uploads/{completed}/cancel"), "upload_completed"),
        (await send(client, cancelled, ROW), "upload_cancelled"),
        (await complete(client, cancelled, [part]), "upload_cancelled"),
    ):
        assert code_of(answer) == (409, code, "upload_id")
        assert answer.headers["x-should-retry"] == "false"
    assert await core.store.list("uploads/") == []


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"purpose": "fine-tune-results"}, 400, "invalid_purpose", "purpose"),
        ({"bytes": 0}, 400, "invalid_value", "bytes"),
        ({"bytes": "12"}, 400, "invalid_type", "bytes"),
        ({"bytes": 8 * 1024**3 + 1}, 413, "file_too_large", "bytes"),
        ({"mime_type": "a\nb"}, 400, "invalid_value", "mime_type"),
        ({"filename": None}, 400, "invalid_type", "filename"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "invalid_value", "expires_after.seconds"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, 400, "invalid_value", "expires_after.anchor"),
        ({"expires_after": {"seconds": 3600}}, 400, "missing_required_parameter", "expires_after.anchor"),
        ({"parts": 3}, 400, "unknown_parameter", "parts"),
    ],
)
async def test_bad_uploads_are_refused_at_their_beginning(
    core: Core, changes: dict[str, Any], status: int, code: str, param: str
) -> None:
    body = {"filename": "a", "purpose": "batch", "bytes": 1, "mime_type": "text/plain"} | changes
    async with client_of(*await app_of(core)) as client:
        assert code_of(await client.post("/uploads", json=body)) == (status, code, param)


async def test_parts_have_limits_however_they_are_sent(tmp_path: Path) -> None:
    async with open_core(tmp_path / "home", max_part_bytes=1000) as core:
        async with client_of(*await app_of(core)) as client:
            upload_id = await begin(client, b"x" * 3000, purpose="batch")
            assert code_of(await send(client, upload_id, b"x" * 1001)) == (413, "part_too_large", "data")
            assert code_of(await send(client, upload_id, b"x" * 2 * MEBIBYTE)) == (413, "part_too_large", "data")
            assert code_of(await send(client, upload_id, b"")) == (400, "empty_part", "data")
            no_file = await client.post(f"/uploads/{upload_id}/parts", data={"data": "text"})
            assert code_of(no_file) == (400, "missing_required_parameter", "data")
            # What is sent again after a lost answer has room; no end of parts has not.
            answers = [await send(client, upload_id, b"x" * 1000) for _ in range(9)]
            assert [answer.status_code for answer in answers] == [200] * 8 + [400]
            assert code_of(answers[-1]) == (400, "too_many_parts", "data")
        assert len(await core.store.list("uploads/")) == 8
        assert list((core.settings.home / "uploads").iterdir()) == []


async def test_uploads_belong_to_their_project(client: httpx.AsyncClient, core: Core) -> None:
    upload_id = await begin(client, ROW)
    part_id = await add(client, upload_id, ROW)
    async with core.database.write() as session:
        session.add(ProjectRow(id="other", created_at=0))
    key = (await ProjectsService(core).create_key("other", "test")).key
    client.headers["authorization"] = f"Bearer {key}"
    for answer in (
        await client.get(f"/uploads/{upload_id}"),
        await send(client, upload_id, ROW),
        await complete(client, upload_id, [part_id]),
        await client.post(f"/uploads/{upload_id}/cancel"),
    ):
        assert code_of(answer) == (404, "upload_not_found", "upload_id")
    assert (await client.get("/uploads/%00")).status_code < 500


async def test_storage_beyond_the_quota_is_refused(tmp_path: Path) -> None:
    async with open_core(tmp_path / "home", quota_max_storage_bytes=2 * len(ROW)) as core:
        async with client_of(*await app_of(core)) as client:
            form = {"data": {"purpose": "batch"}, "files": {"file": ("a", ROW * 2)}}
            upload_id = await begin(client, ROW * 2, purpose="batch")
            part_id = await add(client, upload_id, ROW * 2)
            # Parts under way count.
            for answer in (
                await client.post("/files", **form),  # type: ignore[arg-type]  # a dict of keyword arguments
                await client.post(
                    "/uploads", json={"filename": "a", "purpose": "batch", "bytes": 1, "mime_type": "text/plain"}
                ),
            ):
                assert code_of(answer)[:2] == (429, "storage_quota_exceeded")
            assert (await complete(client, upload_id, [part_id])).status_code == 200
        assert len(await core.store.list("")) == 1


async def test_parts_of_many_uploads_stay_within_the_quota(tmp_path: Path) -> None:
    async with open_core(tmp_path / "home", quota_max_storage_bytes=3 * len(ROW)) as core:
        async with client_of(*await app_of(core)) as client:
            first, second = [await begin(client, ROW * 2, purpose="batch") for _ in range(2)]
            await add(client, first, ROW * 2)
            assert code_of(await send(client, second, ROW * 2))[:2] == (429, "storage_quota_exceeded")
            await add(client, second, ROW)
        assert len(await core.store.list("")) == 2


async def test_a_large_part_is_never_in_memory(core: Core) -> None:
    size = 32 * MEBIBYTE
    app, key = await app_of(core)
    highest = 0

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, resident_bytes())
            await asyncio.sleep(0.005)

    async with serving(app) as url, httpx.AsyncClient(base_url=f"{url}/v1", timeout=60) as client:
        client.headers["authorization"] = f"Bearer {key}"
        upload_id = await begin(client, purpose="batch", bytes=size)
        await add_streamed(client, upload_id, MEBIBYTE)
        before = resident_bytes()
        watching = asyncio.create_task(watch())
        part_id = await add_streamed(client, upload_id, size)
        completed = await complete(client, upload_id, [part_id])
        assert completed.status_code == 200, completed.text
        async with client.stream("GET", f"/files/{completed.json()['file']['id']}/content") as answer:
            received = sum([len(piece) async for piece in answer.aiter_raw()])
        watching.cancel()
    assert received == size
    assert highest - before < size * 3 // 4, "a whole part was in memory"


async def add_streamed(client: httpx.AsyncClient, upload_id: str, size: int) -> str:
    """Sends a part that the client does not hold in memory either."""
    head, tail = b'--x\r\ncontent-disposition: form-data; name="data"; filename="a"\r\n\r\n', b"\r\n--x--\r\n"
    chunk = b"x" * MEBIBYTE

    async def body() -> AsyncIterator[bytes]:
        yield head
        for _ in range(size // MEBIBYTE):
            yield chunk
        yield tail

    headers = {
        "content-type": "multipart/form-data; boundary=x",
        "content-length": str(len(head) + size + len(tail)),
    }
    answer = await client.post(f"/uploads/{upload_id}/parts", content=body(), headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def resident_bytes() -> int:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
