"""One shape of error for everything over HTTP, limits that hold while bytes arrive, and headers that clients read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError

from tests.support.asgi_server import serving
from tests.support.core import open_core
from tunesmith_server.auth import Authenticator
from tunesmith_server.core import Core
from tunesmith_server.errors import ConflictError
from tunesmith_server.http_app import create_http_app
from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService

LIMIT = 100_000


class Numbers(BaseModel):
    n_epochs: int


class Body(BaseModel):
    hyperparameters: Numbers


def routes() -> APIRouter:
    router = APIRouter()

    @router.post("/v1/jobs")
    async def create(body: Body) -> dict[str, int]:
        return {"n_epochs": body.hyperparameters.n_epochs}

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str, principal: CurrentPrincipal) -> dict[str, str]:
        return {"name": name, "project": principal.project_id}

    @router.post("/v1/raw")
    async def read_raw(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @router.get("/v1/conflict")
    async def conflict() -> None:
        raise ConflictError("job_ended", "The job has ended.")

    @router.get("/v1/defect")
    async def defect() -> None:
        raise ValueError("a secret of the inside")

    @router.get("/v1/outage")
    async def outage() -> None:
        raise OperationalError("SELECT", {}, OSError("a secret of the inside"))

    @router.get("/v1/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            yield "first\n"
            await asyncio.Event().wait()

        return StreamingResponse(chunks())

    return router


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[FastAPI]:
    async with open_core(tmp_path / "home", max_body_bytes=LIMIT, api_key="test-key") as core:
        yield await app_of(core)


async def app_of(core: Core) -> FastAPI:
    projects = ProjectsService(core)
    await projects.ensure_first_key()
    return create_http_app(core, Authenticator(projects, core.signer), [routes()])


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as made:
        yield made


def error_of(answer: httpx.Response) -> dict[str, str]:
    error: dict[str, str] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert error["message"].endswith("."), error["message"]
    assert answer.headers["x-request-id"]
    return error


@pytest.mark.parametrize("path", ["/v1/none", "/", "/v1/jobs/", "/docs"])
async def test_an_unknown_path(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_url")


async def test_a_wrong_method(client: httpx.AsyncClient) -> None:
    answer = await client.delete("/v1/jobs")
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b'{"hyperparameters": {"n_epochs": "many"}}', "invalid_type", "hyperparameters.n_epochs"),
        (b"{}", "missing_required_parameter", "hyperparameters"),
        (b'{"hyperparameters": ', "invalid_json", None),
        (b'{"hyperparameters": "\xff"}', "invalid_json", None),
        (b"[" * 90_000, "invalid_json", None),
        (b"", "invalid_body", None),
        (b"null", "invalid_body", None),
    ],
)
async def test_a_bad_body(client: httpx.AsyncClient, body: bytes, code: str, param: str | None) -> None:
    answer = await client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")


async def test_json_without_its_content_type_is_explained(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/jobs", content=b'{"hyperparameters": {"n_epochs": 1}}')
    assert "Content-Type: application/json" in error_of(answer)["message"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/raw"])
async def test_a_body_over_the_limit(client: httpx.AsyncClient, path: str) -> None:
    sent = 0

    async def chunked() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 10_000
            yield b"x" * 10_000

    headers = {"content-type": "application/json"}
    for content in (b"x" * (LIMIT + 1), chunked()):
        answer = await client.post(path, content=content, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")
    assert sent <= LIMIT + 20_000, "the rest is not read"


async def test_a_body_at_the_limit_passes(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/raw", content=b"x" * LIMIT)
    assert answer.json() == {"bytes": LIMIT}


async def test_a_real_client_gets_the_refusal_of_a_body_that_it_is_still_sending(app: FastAPI) -> None:
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(5):
            answer = await client.post("/v1/raw", content=b"x" * (LIMIT * 200))
            assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")


async def test_a_defect_shows_its_id_and_nothing_else(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.get("/v1/defect")
    assert answer.status_code == 500
    error = error_of(answer)
    assert (error["code"], error["type"]) == ("internal_error", "server_error")
    assert answer.headers["x-request-id"] in error["message"]
    assert "secret" not in answer.text
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.__dict__["fields"]["request_id"] == answer.headers["x-request-id"]


async def test_a_database_outage_is_to_be_tried_again(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/outage")
    assert (answer.status_code, error_of(answer)["code"]) == (503, "database_unavailable")
    assert "secret" not in answer.text


async def test_a_conflict_is_not_to_be_tried_again(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/conflict")
    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Basic dGVzdA==", "missing_api_key"),
        ("Bearer wrong", "invalid_api_key"),
        ("Bearer test-key x", "invalid_api_key"),
        ("Bearer \xff", "invalid_api_key"),
    ],
)
async def test_callers_without_a_valid_key(client: httpx.AsyncClient, authorization: str | None, code: str) -> None:
    headers = {} if authorization is None else {b"authorization": authorization.encode("latin-1")}
    answer = await client.get("/v1/models/x", headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (401, code)


@pytest.mark.parametrize("name", ["ft:base:default:mine:abc", "org%2Fmodel"])
async def test_model_ids_with_slashes_and_colons_arrive(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/v1/models/{name}", headers={"authorization": "bearer test-key"})
    assert answer.json() == {"name": name.replace("%2F", "/"), "project": DEFAULT_PROJECT}


async def test_headers_that_clients_read(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health")
    assert answer.headers["openai-version"] == "2020-10-01"
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert answer.headers["x-request-id"].startswith("req_")
    own = await client.get("/health", headers={"x-request-id": "my-id_1.2"})
    assert own.headers["x-request-id"] == "my-id_1.2"
    for hostile in ("a b", "x" * 200, "ü".encode().decode("latin-1")):
        answer = await client.get("/health", headers={b"x-request-id": hostile.encode("latin-1")})
        assert answer.headers["x-request-id"].startswith("req_")


async def test_pages_may_ask_what_takes_a_key_and_nothing_else(client: httpx.AsyncClient) -> None:
    """What a browser asks before it lets a page's script send a key, and what it looks at in answers."""
    page = {"origin": "https://page.example"}
    asked = page | {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    allowed = await client.options("/v1/jobs", headers=asked)
    refused = await client.get("/v1/models/toy", headers=page | {"authorization": "Bearer sk-wrong"})
    closed = [await client.get(path, headers=page) for path in ("/health", "/metrics")]

    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-headers"] == asked["access-control-request-headers"]
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")
    assert refused.headers["access-control-expose-headers"] == "*"
    assert "access-control-allow-credentials" not in refused.headers
    assert not any("access-control-allow-origin" in answer.headers for answer in closed)


async def test_health_follows_the_database(tmp_path: Path) -> None:
    async with open_core(tmp_path / "home") as core:
        app = await app_of(core)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            assert (await client.get("/health")).json() == {"status": "ok"}
            await core.database.close()
            (tmp_path / "home" / "tunesmith.db").unlink()
            (tmp_path / "home").rename(tmp_path / "away")
            answer = await client.get("/health")
            assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})


async def test_calls_are_counted_by_route_and_not_by_path(client: httpx.AsyncClient) -> None:
    await client.get("/v1/models/counted", headers={"authorization": "Bearer test-key"})
    await client.get("/v1/scan/for/secrets")
    text = (await client.get("/metrics")).text
    assert 'tunesmith_calls_total{method="GET /v1/models/{name:path}",status="200",transport="http"}' in text
    assert 'method="GET unmatched",status="404"' in text
    assert "counted" not in text
    assert "secrets" not in text


async def test_neither_keys_nor_bodies_are_logged(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await client.post("/v1/jobs", json={"hyperparameters": "training text"}, headers={"authorization": "Bearer key1"})
    await client.get("/v1/models/x?token=key2", headers={"authorization": "Bearer test-key"})
    logged = "".join(
        f"{record.getMessage()} {record.__dict__}" for record in caplog.records if "httpx" not in record.name
    )
    assert "call answered" in logged
    for secret in ("training text", "key1", "key2", "test-key"):
        assert secret not in logged


async def test_streams_pass_through_at_once_and_end_with_their_reader(app: FastAPI) -> None:
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("GET", "/v1/stream") as answer,
    ):
        async for line in answer.aiter_lines():
            assert line == "first"
            break
