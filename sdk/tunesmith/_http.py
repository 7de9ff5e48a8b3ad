"""Owns the one way a request goes out: retries, time-outs, idempotency keys, and the HTTP library.
Must not know any resource; beside `_http_settings` nothing else in the SDK imports the HTTP library.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from tunesmith._errors import APIConnectionError, APIError, APITimeoutError, UnexpectedResponseError, status_error
from tunesmith._http_settings import explained_settings, tls_context
from tunesmith._version import __version__

ShapeT = TypeVar("ShapeT", bound=BaseModel)
ResultT = TypeVar("ResultT")

CONNECT_TIMEOUT_S = 5.0
QUICK_TIMEOUT_S = 60.0
"""Longest silence of the server on calls that only look something up or write a row."""
SLOW_TIMEOUT_S = 600.0
"""Longest silence of the server while it checks an upload or generates text."""

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 8.0
_LONGEST_RETRY_AFTER_S = 120.0


@dataclass(frozen=True)
class Call:
    """What is to be sent; `json` and `form` exclude each other.

    `file` is a name and its bytes, sent as the multipart field `field` beside `form`.
    """

    method: str
    path: str
    query: Mapping[str, str | int | None] | None = None
    json: Mapping[str, object] | None = None
    form: Mapping[str, str] | None = None
    file: tuple[str, BinaryIO | bytes] | None = None
    field: str = "file"
    headers: Mapping[str, str] | None = None
    slow: bool = False


def path_of(*parts: str) -> str:
    """Return the path of these parts below the API root, each percent-encoded.

    Raises:
        ValueError: a part is empty or a dot segment, and would name another resource.
        TypeError: a part is no text.
    """
    for part in parts:
        if not isinstance(part, str):
            what = "None" if part is None else f"a {type(part).__name__}"
            raise TypeError(f"An id is expected, not {what}.")
        if part in {"", ".", ".."}:
            raise ValueError(f"An id is expected, not {part!r}.")
    return "/v1/" + "/".join(quote(part, safe=":") for part in parts)


class Transport(Protocol):
    """Everything that differs between the synchronous and the asynchronous client."""

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return when the head of the answer is there."""
        ...

    async def read(self, response: httpx.Response) -> None:
        """Read the whole body into the response."""
        ...

    def iterate(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        ...

    async def release(self, response: httpx.Response) -> None:
        """Give the connection of a response back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """Run a function that blocks, without holding up an event loop."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class BlockingTransport(Transport):
    """Blocks in every method and therefore never suspends (see `_blocking`)."""

    def __init__(self, trust_env: bool) -> None:
        with explained_settings():
            self._client = httpx.Client(trust_env=trust_env, verify=tls_context())

    async def send(self, request: httpx.Request) -> httpx.Response:
        return self._client.send(request, stream=True)

    async def read(self, response: httpx.Response) -> None:
        response.read()

    async def iterate(self, response: httpx.Response) -> AsyncIterator[bytes]:
        for chunk in response.iter_bytes():
            yield chunk

    async def release(self, response: httpx.Response) -> None:
        response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - this transport blocks by design

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        return function()

    async def close(self) -> None:
        self._client.close()


class AsyncTransport(Transport):
    """Waits on the running event loop."""

    def __init__(self, trust_env: bool) -> None:
        with explained_settings():
            self._client = httpx.AsyncClient(trust_env=trust_env, verify=tls_context())

    async def send(self, request: httpx.Request) -> httpx.Response:
        return await self._client.send(request, stream=True)

    async def read(self, response: httpx.Response) -> None:
        await response.aread()

    async def iterate(self, response: httpx.Response) -> AsyncIterator[bytes]:
        async for chunk in response.aiter_bytes():
            yield chunk

    async def release(self, response: httpx.Response) -> None:
        await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        return await asyncio.to_thread(function)

    async def close(self) -> None:
        await self._client.aclose()


class HttpClient:
    """Sends calls to one server with one key; written once for both clients."""

    def __init__(
        self, transport: Transport, *, base_url: str, api_key: str, timeout: float | None, max_retries: int
    ) -> None:
        self.transport = transport
        self._base_url = base_url
        self._api_key = api_key
        self._timeout = timeout
        self._max_retries = max_retries

    async def fetch(self, shape: type[ShapeT], call: Call) -> ShapeT:
        """Send the call and return its JSON answer in this shape.

        Raises:
            APIError: see `_errors` for which subclass tells what.
        """
        response = await self._send(call, whole=True)
        try:
            return shape.model_validate_json(response.content)
        except ValidationError as error:
            raise UnexpectedResponseError(
                f"{self._base_url} did not answer as Tunesmith does; check the base URL.",
                code="unexpected_response",
                request_id=_request_id(response),
            ) from error

    async def fetch_bytes(self, call: Call) -> bytes:
        """Send the call and return the bytes of its answer."""
        return (await self._send(call, whole=True)).content

    async def open_stream(self, call: Call) -> ResponseBody:
        """Send the call and return its answer while it arrives; retries end with the head of the answer."""
        return ResponseBody(self.transport, await self._send(call, whole=False))

    async def _send(self, call: Call, *, whole: bool) -> httpx.Response:
        # Built once: every retry repeats the same bytes under the same Idempotency-Key.
        request = self._request_of(call)
        attempt = 0
        while True:
            delay: float | None
            try:
                response = await self.transport.send(request)
                if response.is_success and not whole:
                    return response
                await self.transport.read(response)
            except httpx.RequestError as error:
                failure, delay = _connection_error(error, self._base_url), _backoff(attempt)
            else:
                if response.is_success:
                    return response
                failure = status_error(response.status_code, response.content, _request_id(response))
                delay = _retry_delay(response, attempt)
            if delay is None or attempt >= self._max_retries:
                raise failure
            await self.transport.sleep(delay)
            attempt += 1

    def _request_of(self, call: Call) -> httpx.Request:
        headers = {
            "Authorization": f"Bearer {self._api_key}",
            "Accept": "application/json",
            "User-Agent": f"tunesmith-python/{__version__}",
        }
        if call.method != "GET":
            headers["Idempotency-Key"] = f"tunesmith-{uuid.uuid4()}"
        headers |= call.headers or {}
        silence = self._timeout or (SLOW_TIMEOUT_S if call.slow else QUICK_TIMEOUT_S)
        return httpx.Request(
            call.method,
            self._base_url + call.path,
            params={name: value for name, value in (call.query or {}).items() if value is not None},
            headers=headers,
            json=call.json,
            data=call.form,
            files={call.field: call.file} if call.file else None,
            extensions={"timeout": httpx.Timeout(silence, connect=min(silence, CONNECT_TIMEOUT_S)).as_dict()},
        )


class ResponseBody:
    """The body of an answer that is still arriving; see `_streaming.ByteStream`."""

    def __init__(self, transport: Transport, response: httpx.Response) -> None:
        self.request_id = _request_id(response)
        self.etag: str | None = response.headers.get("etag")
        self.is_rest = response.status_code == httpx.codes.PARTIAL_CONTENT
        self._transport = transport
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._transport.iterate(self._response):
                yield chunk
        except (httpx.RequestError, httpx.StreamClosed) as error:
            raise _connection_error(error, str(self._response.url.copy_with(path="/", query=None))) from error

    async def close(self) -> None:
        """Give the connection back; may be called twice."""
        await self._transport.release(self._response)


class AsyncResource:
    """The base of the resources: verbs that send calls."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http


def _connection_error(error: Exception, base_url: str) -> APIError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        failure: APIError = APITimeoutError(f"{base_url} did not answer in time.", code="timed_out")
    elif isinstance(error, httpx.ConnectError) and "SSL" in str(error):
        failure = APIConnectionError(
            f"{base_url} was reached, but not over TLS: {error}. If it is the right server, have SSL_CERT_FILE name "
            "the certificate to trust, or use http:// where it speaks no TLS.",
            code="tls_failed",
        )
    elif isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        failure = APIConnectionError(
            f"No Tunesmith server was reached at {base_url}; is it running?", code="connection_failed"
        )
    else:
        failure = APIConnectionError(
            f"The connection to {base_url} broke before the answer was complete.", code="connection_broken"
        )
    failure.__cause__ = error
    return failure


def _retry_delay(response: httpx.Response, attempt: int) -> float | None:
    """Return how many seconds to wait before the next attempt, None to make none."""
    wish = response.headers.get("x-should-retry")
    status = response.status_code
    if wish == "false" or (wish != "true" and status not in {408, 429} and status < 500):
        return None
    asked = _asked_delay(response.headers)
    if asked is None:
        return _backoff(attempt)
    # To come back sooner than asked would only add load; a longer wait is for the caller to decide.
    return asked if asked <= _LONGEST_RETRY_AFTER_S else None


def _asked_delay(headers: httpx.Headers) -> float | None:
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after"]))
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    return None


def _backoff(attempt: int) -> float:
    # Jitter spreads clients that were all cut off by the same restart.
    spread = 1 - 0.25 * random.random()  # noqa: S311 - not a secret
    return min(_FIRST_BACKOFF_S * 2.0**attempt, _LONGEST_BACKOFF_S) * spread


def _request_id(response: httpx.Response) -> str | None:
    identifier: str | None = response.headers.get("x-request-id")
    return identifier
