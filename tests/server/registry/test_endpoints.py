"""The REST routes of models speak OpenAI's shapes, also for ids with slashes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.artifacts import publish_base_model
from tests.support.factories import store_file
from tests.support.registry import publish_tuned_model
from tunesmith_server.auth import Authenticator, Principal
from tunesmith_server.core import Core
from tunesmith_server.http_app import create_http_app
from tunesmith_server.registry.downloads import DownloadsService
from tunesmith_server.registry.endpoints import create_router
from tunesmith_server.registry.imports import ImportsService
from tunesmith_server.registry.service import RegistryService

TUNED = "ft:toy-base:default:mine:aaaaaaaa"


class Keys:
    """Every key belongs to the project of its name."""

    async def find_principal(self, key: str) -> Principal | None:
        return Principal(project_id=key, key_id="key_1")


@pytest.fixture
async def client(core: Core) -> AsyncIterator[httpx.AsyncClient]:
    base_revision = await publish_base_model(core, "org/model")
    await publish_tuned_model(core, TUNED, base_revision)
    app = create_http_app(
        core,
        Authenticator(Keys(), core.signer),
        [create_router(RegistryService(core), ImportsService(core), DownloadsService(core))],
    )
    headers = {"Authorization": "Bearer default"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as made:
        yield made


async def test_models_are_listed(client: httpx.AsyncClient, core: Core) -> None:
    answer = await client.get("/v1/models")

    created = int(core.clock())
    assert answer.json() == {
        "object": "list",
        "data": [
            {"id": TUNED, "object": "model", "created": created, "owned_by": "default"},
            {"id": "toy-base", "object": "model", "created": created, "owned_by": "tunesmith"},
            {"id": "org/model", "object": "model", "created": created, "owned_by": "tunesmith"},
        ],
    }


@pytest.mark.parametrize(
    ("path", "name"),
    [(TUNED, TUNED), ("org%2Fmodel", "org/model"), ("org/model", "org/model"), ("toy-base", "toy-base")],
)
async def test_a_model_is_read(client: httpx.AsyncClient, path: str, name: str) -> None:
    answer = await client.get(f"/v1/models/{path}")

    assert (answer.status_code, answer.json()["id"]) == (200, name)


async def test_a_model_is_deleted(client: httpx.AsyncClient) -> None:
    answer = await client.delete(f"/v1/models/{TUNED}")

    assert answer.json() == {"id": TUNED, "object": "model", "deleted": True}
    gone = await client.get(f"/v1/models/{TUNED}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_model_from_outside_is_announced_under_its_name(client: httpx.AsyncClient, core: Core) -> None:
    file = await store_file(core, purpose="model")
    body = {"base_model": "org/model", "file": file, "suffix": "brought"}
    made = await client.post("/v1/models", json=body, headers={"Idempotency-Key": "key"})
    again = await client.post("/v1/models", json=body, headers={"Idempotency-Key": "key"})

    name = made.json()["id"]
    assert name.startswith("ft:toy-base:default:brought:")
    assert made.json() == again.json()
    assert made.json() == {
        "id": name,
        "object": "model",
        "created": int(core.clock()),
        "owned_by": "default",
        "status": "importing",
        "error": None,
        "serving": {"state": "not_loaded", "reason": None, "replicas": []},
    }
    assert (await client.get(f"/v1/models/{name}")).json() == made.json()
    assert name not in (await client.get("/v1/models")).text
    assert (await client.get(f"/v1/model_archives/{name}")).status_code == 404
    assert (await client.delete(f"/v1/models/{name}")).json()["deleted"]
    assert (await client.get(f"/v1/models/{name}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"base_model": "toy-base"}, "file"),
        ({"base_model": "toy-base", "file": "file-x", "suffix": "no way"}, "suffix"),
        ({"base_model": "toy-base", "file": "file-x", "name": "ft:mine"}, "name"),
        ({"base_model": "toy-base", "file": "file-x"}, "file"),
        ({"base_model": "nobody", "file": "file-x"}, "base_model"),
    ],
)
async def test_a_model_from_nothing_is_refused(client: httpx.AsyncClient, body: dict[str, str], param: str) -> None:
    answer = await client.post("/v1/models", json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["toy-base", "org%2Fmodel"])
async def test_a_base_model_is_not(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.delete(f"/v1/models/{path}")

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "base_model_not_deletable"


async def test_a_model_is_downloaded_as_a_tar(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/v1/model_archives/{TUNED}")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-tar")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["content-disposition"] == 'attachment; filename="ft-toy-base-default-mine-aaaaaaaa.tar"'
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        assert archive.getnames() == ["adapter_model.safetensors"]


ARCHIVE = f"/v1/model_archives/{TUNED}"


async def test_an_archive_can_be_looked_at_first(client: httpx.AsyncClient) -> None:
    looked, whole = await client.head(ARCHIVE), await client.get(ARCHIVE)

    assert (looked.status_code, looked.content) == (200, b"")
    names = ("content-type", "content-length", "content-disposition", "accept-ranges", "etag")
    assert [looked.headers[name] for name in names] == [whole.headers[name] for name in names]
    assert (looked.headers["accept-ranges"], looked.headers["etag"][0]) == ("bytes", '"')
    assert (await client.head("/v1/model_archives/ft:nothing")).status_code == 404


async def test_a_download_goes_on_where_it_broke_off(client: httpx.AsyncClient) -> None:
    whole = await client.get(ARCHIVE)
    size, etag = len(whole.content), whole.headers["etag"]

    for headers in ({"Range": "bytes=700-"}, {"Range": "bytes=700-", "If-Range": etag}):
        rest = await client.get(ARCHIVE, headers=headers)
        assert (rest.status_code, rest.content) == (206, whole.content[700:])
        assert rest.headers["content-range"] == f"bytes 700-{size - 1}/{size}"
        assert (rest.headers["content-length"], rest.headers["etag"]) == (str(size - 700), etag)


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=700-", "If-Range": '"another"'},
        {"Range": "bytes=0-9"},
        {"Range": "bytes=-9"},
        {"Range": "bytes=0-,700-"},
        {"Range": "lines=7-"},
        {"If-Range": '"another"'},
    ],
)
async def test_every_other_range_gives_the_whole(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.get(ARCHIVE, headers=headers)

    assert (answer.status_code, "content-range" in answer.headers) == (200, False)
    assert len(answer.content) == int(answer.headers["content-length"])


async def test_a_range_behind_the_end_is_refused(client: httpx.AsyncClient) -> None:
    size = (await client.head(ARCHIVE)).headers["content-length"]
    answer = await client.get(ARCHIVE, headers={"Range": f"bytes={size}-"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{size}"


async def test_other_projects_do_not_see_it(client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/v1/models/{TUNED}", headers={"Authorization": "Bearer other"})

    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", "/v1/models"), ("GET", "/v1/models/x"), ("DELETE", "/v1/models/x")],
)
async def test_a_key_is_needed(client: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path, headers={"Authorization": ""})

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_api_key")
