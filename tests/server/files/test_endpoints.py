"""Files over REST: the official client, hostile input, and nothing left of what was refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from tests.support.archives import tar_of
from tests.support.artifacts import adapter_files
from tests.support.asgi_server import serving
from tests.support.clock import MovableClock
from tests.support.core import open_core
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.db.tables import ProjectRow
from tunesmith_server.files.endpoints import create_router
from tunesmith_server.files.limits import PURPOSES
from tunesmith_server.files.service import FilesService
from tunesmith_server.http_app import create_http_app
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService


def rows(count: int = 12) -> bytes:
    def row(number: int) -> str:
        messages = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": "ü"}]
        return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"

    return "".join(row(number) for number in range(count)).encode()


@pytest.fixture
async def client(each_core: Core) -> AsyncIterator[httpx.AsyncClient]:
    app, key = await app_of(each_core)
    async with client_of(app, key) as made:
        yield made


async def app_of(core: Core) -> tuple[FastAPI, str]:
    """An app with nothing but files, and a key of the default project."""
    projects = ProjectsService(core)
    await projects.ensure_first_key()
    new = await projects.create_key(DEFAULT_PROJECT, "test")
    return create_http_app(core, Authenticator(projects, core.signer), [create_router(FilesService(core))]), new.key


def client_of(app: FastAPI, key: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers)


async def upload(
    client: httpx.AsyncClient, content: bytes, name: str = "rows.jsonl", purpose: str = "fine-tune"
) -> httpx.Response:
    return await client.post("/v1/files", data={"purpose": purpose}, files={"file": (name, content)})


async def test_the_openai_client_works_unmodified(each_core: Core, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows())
    app, key = await app_of(each_core)
    async with serving(app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
        made = await client.files.create(file=path, purpose="fine-tune")
        assert (made.filename, made.bytes, made.status) == ("rows.jsonl", len(rows()), "processed")
        assert (await client.files.wait_for_processing(made.id)).id == made.id
        assert (await client.files.retrieve(made.id)) == made
        assert (await client.files.content(made.id)).read() == rows()
        second = await client.files.create(file=("b.jsonl", rows(3)), purpose="fine-tune")
        assert [file.id async for file in client.files.list(limit=1)] == [second.id, made.id]
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError) as raised:
            await client.files.retrieve(made.id)
        assert raised.value.code == "file_not_found"
        assert raised.value.request_id


async def test_a_file_looks_as_strict_clients_expect(client: httpx.AsyncClient) -> None:
    answer = await upload(client, rows())
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert file.pop("id").startswith("file-")
    assert len(file.pop("sha256")) == 64
    assert file == {
        "object": "file",
        "bytes": len(rows()),
        "created_at": 1_800_000_000,
        "expires_at": None,
        "filename": "rows.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "status_details": None,
    }


async def test_a_bad_file_is_told_whole_and_leaves_nothing(client: httpx.AsyncClient, each_core: Core) -> None:
    lines = rows().splitlines()
    lines[6] = lines[6][:-4]
    lines[8] = b"[]"
    answer = await upload(client, b"\n".join(lines))

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("invalid_json", "file", "invalid_request_error")
    assert error["message"].startswith("Line 7 is not valid JSON")
    assert error["message"].endswith("There is 1 more problem in the file.")
    assert [(problem["line"], problem["code"]) for problem in error["problems"]] == [
        (7, "invalid_json"),
        (9, "not_an_object"),
    ]
    assert await each_core.store.list("") == []
    assert (await client.get("/v1/files")).json()["data"] == []
    assert list((each_core.settings.home / "uploads").iterdir()) == []


async def test_an_empty_file_and_a_wrong_purpose(client: httpx.AsyncClient) -> None:
    empty = (await upload(client, b"")).json()["error"]
    assert (empty["code"], empty["param"]) == ("empty_file", "file")
    wrong = (await upload(client, rows(), purpose="fine-tune-results")).json()["error"]
    assert (wrong["code"], wrong["param"]) == ("invalid_purpose", "purpose")
    assert "fine-tune" in wrong["message"]


async def test_missing_form_fields_are_named(client: httpx.AsyncClient) -> None:
    no_file = await client.post("/v1/files", data={"purpose": "fine-tune"})
    assert (no_file.status_code, no_file.json()["error"]["param"]) == (400, "file")
    no_purpose = await client.post("/v1/files", files={"file": ("a", rows())})
    assert (no_purpose.status_code, no_purpose.json()["error"]["param"]) == (400, "purpose")
    file_as_text = await client.post("/v1/files", data={"purpose": "fine-tune", "file": "text"})
    assert (file_as_text.status_code, file_as_text.json()["error"]["param"]) == (400, "file")
    broken = await client.post(
        "/v1/files", content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "missing_required_parameter")


@pytest.mark.parametrize("purpose", [purpose for purpose in PURPOSES if purpose not in ("fine-tune", "model")])
async def test_only_datasets_are_read_as_datasets(core: Core, purpose: str) -> None:
    async with client_of(*await app_of(core)) as client:
        file = (await upload(client, b"\x00 no rows", purpose=purpose)).json()
        assert (file["purpose"], file["status"]) == (purpose, "processed")
        assert [each["id"] for each in (await client.get(f"/v1/files?purpose={purpose}")).json()["data"]] == [
            file["id"]
        ]
        empty = (await upload(client, b"", purpose=purpose)).json()["error"]
        assert (empty["code"], empty["param"]) == ("empty_file", "file")


async def test_a_model_is_taken_when_engines_could_load_it(core: Core) -> None:
    adapter = {name: content for name, content in adapter_files().items() if name != "golden.json"}
    async with client_of(*await app_of(core)) as client:
        file = (await upload(client, tar_of(adapter), purpose="model")).json()
        assert (file["purpose"], file["status"]) == ("model", "processed")
        bad = adapter | {"adapter_config.json": adapter_files(use_dora=True, bias="all")["adapter_config.json"]}
        refused = (await upload(client, tar_of(bad), purpose="model")).json()["error"]
        assert (refused["code"], refused["param"]) == ("adapter_uses_dora", "file")
        assert refused["message"].endswith("There is 1 more problem in the file.")
        assert [each["code"] for each in refused["problems"]] == ["adapter_uses_dora", "adapter_has_bias"]
        assert (await upload(client, b"no tar", purpose="model")).json()["error"]["code"] == "archive_invalid"
        assert [each["id"] for each in (await client.get("/v1/files")).json()["data"]] == [file["id"]]


async def test_the_openai_client_sets_an_expiry(core: Core, clock: MovableClock) -> None:
    app, key = await app_of(core)
    async with serving(app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
        made = await client.files.create(
            file=("a.jsonl", rows()), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert made.expires_at == clock.now + 3600
        clock.advance(3600)
        with pytest.raises(openai.NotFoundError) as raised:
            await client.files.content(made.id)
        assert raised.value.code == "file_not_found"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"anchor": "created_at", "seconds": "3599"}, "invalid_value", "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": "2592001"}, "invalid_value", "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": "1e4"}, "invalid_type", "expires_after.seconds"),
        ({"anchor": "last_active_at", "seconds": "3600"}, "invalid_value", "expires_after.anchor"),
        ({"anchor": "created_at"}, "missing_required_parameter", "expires_after.seconds"),
        ({"seconds": "3600"}, "missing_required_parameter", "expires_after.anchor"),
    ],
)
async def test_bad_expiries_are_refused(core: Core, fields: dict[str, str], code: str, param: str) -> None:
    data = {"purpose": "fine-tune"} | {f"expires_after[{name}]": value for name, value in fields.items()}
    async with client_of(*await app_of(core)) as client:
        answer = await client.post("/v1/files", data=data, files={"file": ("a.jsonl", rows())})
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)
    assert await core.store.list("") == []


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("a.JSONL", "application/jsonl"),
        ("a.csv", "text/csv; charset=utf-8"),
        ("a.html", "application/octet-stream"),
        ("a", "application/octet-stream"),
    ],
)
async def test_content_says_what_it_is(core: Core, name: str, content_type: str) -> None:
    async with client_of(*await app_of(core)) as client:
        file = (await upload(client, b"<script>", name=name, purpose="user_data")).json()
        answer = await client.get(f"/v1/files/{file['id']}/content")
    assert (answer.headers["content-type"], answer.headers["content-length"]) == (content_type, "8")


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\windows\\rows.jsonl", "rows.jsonl"),
        ("..", "upload"),
        ("a\u202egpj.jsonl", "agpj.jsonl"),
        ("semi;colon'.jsonl", "semi;colon'.jsonl"),
        ("täglich.jsonl", "täglich.jsonl"),
        ("x" * 500, "x" * 200),
    ],
)
async def test_hostile_names_are_shown_harmlessly(core: Core, sent: str, shown: str) -> None:
    async with client_of(*await app_of(core)) as client:
        file = (await upload(client, rows(), name=sent)).json()
        assert file["filename"] == shown
        answer = await client.get(f"/v1/files/{file['id']}/content")
    assert answer.content == rows()
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment; ")
    assert disposition.count('"') == 2
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert await core.store.list("files/") == [f"files/default/{file['id']}"]


async def test_lists_page_in_both_orders_and_filter(client: httpx.AsyncClient) -> None:
    files = [(await upload(client, rows(count))).json() for count in range(1, 6)]
    ids = [file["id"] for file in files]

    async def page(**params: str | int) -> dict[str, Any]:
        answer = await client.get("/v1/files", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]  # httpx types JSON as Any

    newest = await page(limit=2)
    assert [file["id"] for file in newest["data"]] == [ids[4], ids[3]]
    assert (newest["has_more"], newest["first_id"], newest["last_id"]) == (True, ids[4], ids[3])
    # A file that is deleted between two pages does not break the walk.
    await client.delete(f"/v1/files/{ids[3]}")
    rest = await page(limit=10, after=ids[3])
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == ([ids[2], ids[1], ids[0]], False)
    oldest = await page(order="asc", after=ids[0])
    assert [file["id"] for file in oldest["data"]] == [ids[1], ids[2], ids[4]]
    assert (await page(sha256=files[2]["sha256"]))["data"] == [files[2]]
    assert (await page(purpose="fine-tune-results"))["data"] == []
    assert (await page(after=ids[0]))["first_id"] is None


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("after=file-none", "invalid_cursor", "after"),
        ("limit=0", "invalid_value", "limit"),
        ("limit=10001", "invalid_value", "limit"),
        ("limit=many", "invalid_type", "limit"),
        ("order=up", "invalid_value", "order"),
    ],
)
async def test_bad_list_parameters(core: Core, query: str, code: str, param: str) -> None:
    async with client_of(*await app_of(core)) as client:
        answer = await client.get(f"/v1/files?{query}")
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


async def test_a_null_character_is_no_server_error(client: httpx.AsyncClient) -> None:
    for path in ("/v1/files/%00", "/v1/files?after=%00", "/v1/files?purpose=%00"):
        assert (await client.get(path)).status_code < 500, path


async def test_files_belong_to_their_project(client: httpx.AsyncClient, each_core: Core) -> None:
    file_id = (await upload(client, rows())).json()["id"]
    async with each_core.database.write() as session:
        session.add(ProjectRow(id="other", created_at=0))
    stranger = {"authorization": f"Bearer {(await ProjectsService(each_core).create_key('other', 'test')).key}"}

    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = await client.request(method, f"/v1/files/{file_id}{path}", headers=stranger)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
    assert (await client.get("/v1/files", headers=stranger)).json()["data"] == []
    cursor = await client.get("/v1/files", params={"after": file_id}, headers=stranger)
    assert cursor.json()["error"]["code"] == "invalid_cursor"


async def test_no_bytes_are_taken_before_the_key_is_checked(core: Core) -> None:
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield b"x" * 65536

    async with client_of(*await app_of(core)) as client:
        headers = {"authorization": "Bearer wrong", "content-type": "multipart/form-data; boundary=x"}
        answer = await client.post("/v1/files", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert taken <= 1


async def test_a_file_over_the_limit_is_refused_however_it_is_sent(tmp_path: Path) -> None:
    content = rows(100)
    async with open_core(tmp_path / "home", max_upload_bytes=len(content) - 1) as core:
        async with client_of(*await app_of(core)) as client:
            slightly = await upload(client, content)
            assert (slightly.status_code, slightly.json()["error"]["code"]) == (413, "file_too_large")
            far = await upload(client, content * 400)
            assert (far.status_code, far.json()["error"]["code"]) == (413, "file_too_large")
        assert await core.store.list("") == []


async def test_an_upload_that_breaks_off_leaves_nothing(core: Core) -> None:
    app, key = await app_of(core)
    async with client_of(app, key) as plain, serving(app) as url:
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = (
            "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n"
            f"authorization: {'Bearer ' + key}\r\ncontent-type: multipart/form-data; boundary=x\r\n\r\n"
            '--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        )
        writer.write(head.encode() + rows(100))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await plain.get("/v1/files")).json()["data"] == []
    assert await core.store.list("") == []
