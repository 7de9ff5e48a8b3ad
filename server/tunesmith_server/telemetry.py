"""Owns what is measured and logged of calls: request ids, log lines, Prometheus metrics.

It must not know what a call does; keys, bodies and training text never reach a log line.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter, Histogram
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith_server.error_rendering import http_response
from tunesmith_server.errors import (
    InternalError,
    InvalidRequestError,
    StorageFullError,
    TunesmithError,
    UnavailableError,
)
from tunesmith_server.ids import new_id

_log = logging.getLogger(__name__)

_CALLS = Counter("tunesmith_calls_total", "Calls answered.", ["transport", "method", "status"])
_SECONDS = Histogram("tunesmith_call_seconds", "Time until the last byte of the answer.", ["transport", "method"])

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def configure_logging(level: int = logging.INFO) -> None:
    """Sends every log record of this process to stderr, one JSON object per line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # It logs a line per request that the proxy sends on; the call itself has one already.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def choose_request_id(sent: str | None) -> str:
    """The client's own id when it is a harmless one, otherwise a new one."""
    return sent if sent and _REQUEST_ID.fullmatch(sent) else new_id("req_")


def record_call(transport: str, method: str, status: str, seconds: float, request_id: str) -> None:
    """Counts and logs one answered call. `method` is a route template, so that its values stay few."""
    _CALLS.labels(transport, method, status).inc()
    _SECONDS.labels(transport, method).observe(seconds)
    fields = {"transport": transport, "method": method, "status": status, "request_id": request_id}
    _log.info("call answered", extra={"fields": fields | {"milliseconds": round(seconds * 1000, 1)}})


def unexpected(error: Exception, method: str, request_id: str) -> TunesmithError:
    """Logs an error that is not the caller's with its cause and returns what the caller may see of it."""
    fields = {"method": method, "request_id": request_id}
    if isinstance(error, DataError):
        _log.warning("the database cannot hold a value of the request", extra={"fields": fields})
        return InvalidRequestError("invalid_value", "A text of the request has a character that cannot be stored.")
    _log.error("call failed unexpectedly", exc_info=error, extra={"fields": fields})
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError("storage_full", "The server's disk is full. Tell its operator.")
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return UnavailableError("database_unavailable", "The server's database cannot be reached. Try again later.")
    return InternalError(
        "internal_error", f"The server failed on this request. Tell its operator the request id {request_id}."
    )


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
        try:
            await self._app(scope, receive, call.send)
        except ClientDisconnect:
            _log.info("the client went away", extra={"fields": {"request_id": call.request_id}})
        except Exception as error:  # the last place where an answer can still be given
            problem = unexpected(error, call.route, call.request_id)
            if call.status is not None:
                # Part of an answer is out already; only a broken connection tells the client that it is not whole.
                raise
            await http_response(problem)(scope, receive, call.send)
        finally:
            status = "aborted" if call.status is None else str(call.status)
            record_call("http", call.route, status, time.perf_counter() - call.started, call.request_id)


class _HttpCall:
    """One request under way: adds the headers that OpenAI's clients read."""

    def __init__(self, scope: Scope, send: Send) -> None:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self._scope = scope
        self._send = send
        self.request_id = choose_request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        self.started = time.perf_counter()
        self.status: int | None = None

    @property
    def route(self) -> str:
        path = getattr(self._scope.get("route"), "path", "unmatched")
        return f"{self._scope['method']} {path}"

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
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
