"""Owns what is measured and logged of calls: request ids, log lines, Prometheus metrics, spans.

It must not know what a call does; keys, bodies and training text never reach a log line.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from prometheus_client import Counter, Histogram
from sqlalchemy.exc import DataError
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith_server.db.session import DATABASE_FAILURES, failure_reason
from tunesmith_server.error_rendering import http_response
from tunesmith_server.errors import (
    InternalError,
    InvalidRequestError,
    StorageFullError,
    TunesmithError,
    UnavailableError,
)
from tunesmith_server.ids import new_id
from tunesmith_server.tracing import call_span, name_span, trace_id

_log = logging.getLogger(__name__)

_CALLS = Counter("tunesmith_calls_total", "Calls answered.", ["transport", "method", "status"])
_SECONDS = Histogram("tunesmith_call_seconds", "Time until the last byte of the answer.", ["transport", "method"])

_fields: ContextVar[Mapping[str, str]] = ContextVar("log_fields", default={})  # noqa: B039 (never changed in place)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def configure_logging(level: int = logging.INFO) -> None:
    """Sends every log record of this process to stderr, one JSON object per line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # It logs a line per request that the proxy sends on; the call itself has one already.
    logging.getLogger("httpx").setLevel(logging.WARNING)


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    """Every line that is logged within the block carries these fields: request_id, job_id, attempt_id."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def choose_request_id(sent: str | None) -> str:
    """The client's own id when it is a harmless one, otherwise a new one."""
    return sent if sent and _REQUEST_ID.fullmatch(sent) else new_id("req_")


def current_request_id() -> str:
    """The id of the request that the running task answers; empty outside of any."""
    return _fields.get().get("request_id", "")


def record_call(transport: str, method: str, status: str, seconds: float, request_id: str, **ids: str) -> None:
    """Counts and logs one answered call. `method` is a route template, so that its values stay few."""
    _CALLS.labels(transport, method, status).inc()
    _SECONDS.labels(transport, method).observe(seconds)
    fields = {"transport": transport, "method": method, "status": status, "request_id": request_id, **ids}
    _log.info("call answered", extra={"fields": fields | {"milliseconds": round(seconds * 1000, 1)}})


def unexpected(error: Exception, method: str, request_id: str) -> TunesmithError:
    """Logs an error that is not the caller's with its cause and returns what the caller may see of it."""
    fields = {"method": method, "request_id": request_id}
    if isinstance(error, DataError):
        _log.warning("the database cannot hold a value of the request", extra={"fields": fields})
        return InvalidRequestError("invalid_value", "A text of the request has a character that cannot be stored.")
    is_databases = isinstance(error, DATABASE_FAILURES)
    if is_databases:
        # Every call meets it: where in our code says nothing.
        _log.error("the database failed: %s", failure_reason(error), extra={"fields": fields})
    else:
        _log.error("call failed unexpectedly", exc_info=error, extra={"fields": fields})
    if _is_full(error):
        return StorageFullError("storage_full", "The server's disk is full. Tell its operator.")
    if is_databases:
        return UnavailableError("database_unavailable", "The server's database cannot be reached. Try again later.")
    return InternalError(
        "internal_error", f"The server failed on this request. Tell its operator the request id {request_id}."
    )


def _is_full(error: Exception) -> bool:
    """Whether there was no room: on a disk of this process, or on that of either database."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    cause = getattr(error, "orig", None)
    return getattr(cause, "sqlite_errorname", None) == "SQLITE_FULL" or getattr(cause, "sqlstate", None) == "53100"


class RequestTelemetry:
    """Outermost ASGI middleware: identifies, times, logs and counts each request, and answers unexpected errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection as ASGI asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = _HttpCall(scope, send)
        with call_span("http", call.headers, call.request_id) as span, log_fields(request_id=call.request_id):
            try:
                await self._answer(call, scope, receive)
            finally:
                status = "aborted" if call.status is None else str(call.status)
                name_span(span, call.route, status, failed=call.status is None or call.status >= 500)
                seconds = time.perf_counter() - call.started
                record_call("http", call.route, status, seconds, call.request_id, **call.ids)

    async def _answer(self, call: _HttpCall, scope: Scope, receive: Receive) -> None:
        try:
            await self._app(scope, receive, call.send)
        except ClientDisconnect:
            _log.info("the client went away")
        except Exception as error:  # the last place where an answer can still be given
            problem = unexpected(error, call.route, call.request_id)
            if call.status is not None:
                # Part of an answer is out already; only a broken connection tells the client that it is not whole.
                raise
            await http_response(problem)(scope, receive, call.send)


class _HttpCall:
    """One request under way: adds the headers that OpenAI's clients read."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._scope = scope
        self._send = send
        self.request_id = choose_request_id(self.headers.get("x-request-id"))
        self.started = time.perf_counter()
        self.status: int | None = None

    @property
    def route(self) -> str:
        path = getattr(self._scope.get("route"), "path", "unmatched")
        return f"{self._scope['method']} {path}"

    @property
    def ids(self) -> dict[str, str]:
        """The job of the call, if its route names one of ours."""
        job_id = self._scope.get("path_params", {}).get("job_id", "")
        return {"job_id": job_id} if _REQUEST_ID.fullmatch(job_id) else {}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers["openai-version"] = "2020-10-01"
            headers["openai-processing-ms"] = str(round((time.perf_counter() - self.started) * 1000))
        await self._send(message)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields.get(),
            **({"trace_id": trace} if (trace := trace_id()) else {}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
