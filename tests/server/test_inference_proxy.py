"""Requests pass to a real gateway server and back, piece by piece, and end with their client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from tests.support.asgi_server import serving
from tests.support.ports import free_ports
from tunesmith_server.error_rendering import http_response
from tunesmith_server.errors import TunesmithError
from tunesmith_server.inference_proxy import InferenceProxy, create_router

CHAT = "/v1/chat/completions"


class Gateway:
    """Stands for the gateway: echoes, streams at the test's pace, and notices when it is cancelled."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.proceed = asyncio.Event()
        self.held = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.app.post(CHAT)(self.answer)
        self.app.post("/v1/completions")(self.answer)

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        mode = request.headers.get("x-mode")
        if mode == "stream":
            return StreamingResponse(self.events(), media_type="text/event-stream")
        if mode == "hold":
            self.held.set()
            while (await request.receive())["type"] != "http.disconnect":
                continue
            self.cancelled.set()
        if mode == "refuse":
            return JSONResponse({"error": {"code": "model_loading"}}, 503, {"retry-after": "7"})
        content = {"path": request.url.path, "headers": dict(request.headers), "body": body.decode()}
        return JSONResponse(content, headers={"x-from": "gateway", "keep-alive": "timeout=5"})

    async def events(self) -> AsyncIterator[bytes]:
        try:
            yield b'data: {"n":1}\n\n'
            await self.proceed.wait()
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@asynccontextmanager
async def fronted(gateway_url: str, patience_seconds: float = 0.0) -> AsyncIterator[httpx.AsyncClient]:
    proxy = InferenceProxy(gateway_url, reason_for_none="Inference is off.", patience_seconds=patience_seconds)
    app = FastAPI()
    app.include_router(create_router(proxy))

    @app.exception_handler(TunesmithError)
    async def render(_request: Request, error: TunesmithError) -> Response:
        return http_response(error)

    async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        yield client
    await proxy.close()


@asynccontextmanager
async def behind() -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    gateway = Gateway()
    async with serving(gateway.app) as url, fronted(url) as client:
        yield gateway, client


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_a_request_arrives_whole_and_without_what_belongs_to_one_hop(path: str) -> None:
    async with behind() as (_, client):
        answer = await client.post(
            path,
            content='{"model":"x"}',
            headers={"authorization": "Bearer k", "connection": "keep-alive, x-hop", "x-hop": "1", "te": "trailers"},
        )

    seen = answer.json()
    assert (seen["path"], seen["body"]) == (path, '{"model":"x"}')
    assert seen["headers"]["authorization"] == "Bearer k"
    assert seen["headers"]["host"].startswith("127.0.0.1:")
    assert not {"x-hop", "te"} & set(seen["headers"])
    assert answer.headers["x-from"] == "gateway"
    assert "keep-alive" not in answer.headers


async def test_an_error_of_the_gateway_is_passed_on() -> None:
    async with behind() as (_, client):
        answer = await client.post(CHAT, headers={"x-mode": "refuse"})

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json() == {"error": {"code": "model_loading"}}


async def test_a_stream_is_passed_on_piece_by_piece() -> None:
    async with behind() as (gateway, client), client.stream("POST", CHAT, headers={"x-mode": "stream"}) as answer:
        pieces = answer.aiter_bytes()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert await anext(pieces) == b'data: {"n":1}\n\n'
        gateway.proceed.set()
        assert [piece async for piece in pieces] == [b"data: [DONE]\n\n"]


async def test_a_client_that_leaves_a_stream_ends_it_in_the_gateway() -> None:
    async with behind() as (gateway, client):
        async with client.stream("POST", CHAT, headers={"x-mode": "stream"}) as answer:
            await anext(answer.aiter_bytes())

        await asyncio.wait_for(gateway.cancelled.wait(), 10)


async def test_a_client_that_leaves_before_the_answer_ends_the_wait_in_the_gateway() -> None:
    async with behind() as (gateway, client):
        request = asyncio.ensure_future(client.post(CHAT, headers={"x-mode": "hold"}))
        await asyncio.wait_for(gateway.held.wait(), 10)
        request.cancel()

        await asyncio.wait_for(gateway.cancelled.wait(), 10)


async def test_a_gateway_that_cannot_be_reached_is_told_with_a_time_to_retry() -> None:
    async with fronted(f"http://127.0.0.1:{free_ports(1)[0]}") as client:
        answer = await client.post(CHAT, json={})

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "inference_unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_a_gateway_that_breaks_off_before_its_answer_is_told_the_same_way() -> None:
    async def break_off(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(break_off, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, fronted(f"http://127.0.0.1:{port}", patience_seconds=30) as client:
        answer = await client.post(CHAT, json={})

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "inference_unavailable")


async def test_a_gateway_that_breaks_off_once_is_asked_again() -> None:
    asked = 0

    async def break_off_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            await reader.readuntil(b"{}")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(break_off_first, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, fronted(f"http://127.0.0.1:{port}") as client:
        answer = await client.post(CHAT, json={})

    assert (answer.status_code, answer.text, asked) == (200, "ok", 2)


@asynccontextmanager
async def fronting_one_that_dies(head: str) -> AsyncIterator[httpx.AsyncClient]:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        chunk = b'f\r\ndata: {"n":1}\n\n'
        writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\ntransfer-encoding: chunked\r\n\r\n".encode() + chunk)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(die, "127.0.0.1", 0)
    async with server, fronted(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        yield client


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
async def test_a_stream_whose_gateway_dies_ends_with_the_error_of_a_dead_engine(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with fronting_one_that_dies("content-type: text/event-stream; charset=utf-8") as client:
        answer = await client.post(path, json={})

    first, last = [event for event in answer.text.split("\n\n") if event]
    assert first == 'data: {"n":1}'
    told = json.loads(last.partition("data: ")[2])
    assert (told["error"]["code"], told["error"]["type"]) == ("engine_error", "server_error")
    if path == "/v1/responses":
        assert last.startswith("event: error\n")
        assert (told["type"], told["code"], told["sequence_number"]) == ("error", "engine_error", 1)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "the gateway failed in an answer: RemoteProtocolError"
    ]


async def test_a_whole_answer_whose_gateway_dies_breaks_off(caplog: pytest.LogCaptureFixture) -> None:
    async with fronting_one_that_dies("content-type: application/json") as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(CHAT, json={})

    assert [record for record in caplog.records if record.exc_info] == []


async def test_an_early_request_waits_for_the_gateway_to_start() -> None:
    gateway = Gateway()
    port = free_ports(1)[0]
    async with fronted(f"http://127.0.0.1:{port}", patience_seconds=30) as client:
        request = asyncio.ensure_future(client.post(CHAT, content="{}"))
        await asyncio.sleep(0.05)
        assert not request.done()
        async with serving(gateway.app, port):
            assert json.loads((await request).content)["body"] == "{}"


async def test_without_a_gateway_the_reason_is_told_and_not_worth_a_retry() -> None:
    async with fronted("") as client:
        answer = await client.post(CHAT, json={})

    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "Inference is off.",
        "type": "invalid_request_error",
        "param": None,
        "code": "inference_disabled",
    }
