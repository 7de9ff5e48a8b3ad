"""Owns the way of inference requests through the control plane to the gateway, so that one base URL serves all.

It must not know models, engines or keys: the gateway authenticates and decides. Nothing is buffered on the way back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpx
from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from tunesmith_server.config import MEBIBYTE
from tunesmith_server.errors import NotFoundError, UnavailableError

_CHAT = "/v1/chat/completions"
_RESPONSES = "/v1/responses"
ROUTES = (_CHAT, "/v1/completions", _RESPONSES, "/v1/embeddings")

_log = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = 5
_CONNECT_POLL_SECONDS = 0.25
# Reading has no limit: a request may be held while its model loads, and the client's own limit ends it.
_TIMEOUT = httpx.Timeout(connect=5.0, read=None, write=60.0, pool=None).as_dict()
# Whoever asks has a limit of their own for the whole.
_ASK_TIMEOUT = httpx.Timeout(connect=5.0, read=None, write=60.0, pool=None)
_MAX_ANSWER_BYTES = 4 * MEBIBYTE
# An idle connection is given up before the gateway's server does it (5 s), or a request could meet a closed one.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=2.0)
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# The client library writes its own for the body it sends.
_OURS_TO_GATEWAY = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}
# This server's own HTTP layer writes them.
_OURS_TO_CLIENT = _HOP_BY_HOP | {b"date", b"server"}

# The gateway reads the body; the document says no more of it than every gateway asks for.
_BODY_SCHEMA = {"type": "object", "required": ["model"], "properties": {"model": {"type": "string"}}}
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": _BODY_SCHEMA}}}}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The whole answer, or with `stream` its pieces as server-sent events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}

Headers = list[tuple[bytes, bytes]]


class InferenceProxy:
    """Passes requests on to the gateway at `gateway_url`; without one, every request is told `reason_for_none`.

    While the gateway cannot be reached, a request waits up to `patience_seconds` for it.
    """

    def __init__(self, gateway_url: str, *, reason_for_none: str, patience_seconds: float = 20.0) -> None:
        self._gateway_url = gateway_url.rstrip("/")
        self._reason_for_none = reason_for_none
        self._patience_seconds = patience_seconds
        self._client = httpx.AsyncClient(limits=_LIMITS, trust_env=False, follow_redirects=False)

    async def forward(self, request: Request) -> Response:
        """The gateway's answer as it comes; raises NotFoundError when inference is off."""
        if not self._gateway_url:
            raise NotFoundError("inference_disabled", self._reason_for_none)
        upstream = httpx.Request(
            request.method,
            self._gateway_url + request.url.path,
            headers=_without(request.headers.raw, _OURS_TO_GATEWAY),
            content=await request.body(),
            extensions={"timeout": _TIMEOUT},
        )
        return _Relay(self._client, upstream, self._patience_seconds)

    def chat_for(self, authorization: str | None) -> Callable[[bytes], Awaitable[tuple[int, bytes]]]:
        """Asks for chat completions in the name of a caller, for parts of this server that need an answer.

        What is returned takes a request's body and gives status and body of the answer. It raises NotFoundError when
        inference is off, UnavailableError when the gateway cannot be reached or says too much.
        """

        async def chat(body: bytes) -> tuple[int, bytes]:
            if not self._gateway_url:
                raise NotFoundError("inference_disabled", self._reason_for_none)
            headers = {"authorization": authorization or "", "content-type": "application/json"}
            try:
                async with self._client.stream(
                    "POST", self._gateway_url + _CHAT, content=body, headers=headers, timeout=_ASK_TIMEOUT
                ) as answer:
                    return answer.status_code, await _bounded(answer)
            except httpx.HTTPError as error:
                raise _unavailable() from error

        return chat

    async def close(self) -> None:
        """Closes every connection to the gateway."""
        await self._client.aclose()


def create_router(proxy: InferenceProxy) -> APIRouter:
    """The inference routes."""
    router = APIRouter(tags=["inference"])
    for path in ROUTES:
        router.add_api_route(
            path, proxy.forward, methods=["POST"], response_class=Response, responses=_ANSWER, openapi_extra=_BODY
        )
    return router


class _Relay(Response):
    """One request under way: streams the answer, and is cancelled when the client goes away."""

    def __init__(self, client: httpx.AsyncClient, upstream: httpx.Request, patience_seconds: float) -> None:
        super().__init__()
        self._client = client
        self._upstream = upstream
        self._patience_seconds = patience_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection as ASGI asks; raises UnavailableError when no answer has begun."""
        relay = asyncio.ensure_future(self._relay(send))
        client_gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({relay, client_gone}, return_when=asyncio.FIRST_COMPLETED)
            if relay.done():
                relay.result()
        finally:
            relay.cancel()
            client_gone.cancel()
            await asyncio.gather(relay, client_gone, return_exceptions=True)

    async def _relay(self, send: Send) -> None:
        answer = await self._answer()
        try:
            headers = _without(answer.headers.raw, _OURS_TO_CLIENT)
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            events = 0
            async for chunk in answer.aiter_raw():
                events += chunk.count(b"\n\n")
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except httpx.HTTPError as error:
            _log.error("the gateway failed in an answer: %s", type(error).__name__)
            # Of any other answer, only a broken connection tells the client that it is not whole.
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                told = _broken_off(self._upstream.url.path, events)
                await send({"type": "http.response.body", "body": told, "more_body": False})
        finally:
            await answer.aclose()

    async def _answer(self) -> httpx.Response:
        deadline = time.monotonic() + self._patience_seconds
        is_second = False
        while True:
            try:
                return await self._client.send(self._upstream, stream=True)
            except httpx.ConnectError as error:
                # Nothing was sent: the gateway is starting, or starting again.
                if time.monotonic() > deadline:
                    raise _unavailable() from error
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                # It went away, and the client has seen nothing: another one behind the address answers, or its next
                # start. Once only, since the request may be what ended it.
                if is_second:
                    raise _unavailable() from error
                is_second = True
            except httpx.HTTPError as error:
                raise _unavailable() from error
            await asyncio.sleep(_CONNECT_POLL_SECONDS)


def _broken_off(path: str, events: int) -> bytes:
    """The event, after so many, with which the gateway itself ends a stream whose engine dies."""
    message = "The engine failed on this request. Send it again; tell the operator if it keeps failing."
    error = {"message": message, "type": "server_error", "param": None, "code": "engine_error"}
    told: dict[str, Any] = {"error": error}
    kind = ""
    if path == _RESPONSES:
        told |= error | {"type": "error", "sequence_number": events}
        kind = "event: error\n"
    # Empty lines first, for an event that is half sent.
    return f"\n\n{kind}data: {json.dumps(told)}\n\n".encode("ascii")


async def _bounded(answer: httpx.Response) -> bytes:
    content = b""
    async for chunk in answer.aiter_bytes():
        content += chunk
        if len(content) > _MAX_ANSWER_BYTES:
            raise _unavailable()
    return content


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def _without(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Headers:
    lowered = [(name.lower(), value) for name, value in headers]
    named = {token.strip().lower() for name, value in lowered if name == b"connection" for token in value.split(b",")}
    return [(name, value) for name, value in lowered if name not in dropped and name not in named]


def _unavailable() -> UnavailableError:
    message = "The inference service cannot be reached at the moment. Try again in a few seconds."
    return UnavailableError("inference_unavailable", message, retry_after=_RETRY_AFTER_SECONDS)
