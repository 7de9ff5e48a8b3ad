"""Owns an HTTP proxy in front of a real S3 server that misbehaves as real ones do, by a seeded plan.

It must not know who asks. Signatures stay valid, because the host name that clients signed is passed on.
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

FAULTS = ("internal_error", "slow_down", "cut_body", "cut_upload", "lost_answer", "latency")
_SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>'
_INTERNAL = b'<?xml version="1.0"?><Error><Code>InternalError</Code><Message>We failed.</Message></Error>'
_HOP_HEADERS = frozenset({"connection", "transfer-encoding", "keep-alive"})


class S3FaultProxy:
    """Listens on loopback while it is entered. `rate` is the share of requests that go wrong; 0 until it is set."""

    def __init__(self, target: str, seed: int = 1) -> None:
        self.rate = 0.0
        self.done: Counter[str] = Counter()
        """How often each fault was inflicted."""
        self._target = urlsplit(target).netloc
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                proxy.serve(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_any  # noqa: N815 (names of http.server)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """Answers one request, rightly or not."""
        fault = self._choose(request.command)
        if request.headers.get("expect", "").lower() == "100-continue" and fault == "cut_upload":
            fault = "lost_answer"
        length = int(request.headers.get("content-length") or 0)
        if fault == "cut_upload":
            # The connection breaks while the client is still sending: nothing reaches the store.
            request.rfile.read(length // 2)
            self._hang_up(request)
            return
        body = request.rfile.read(length)
        if fault in ("internal_error", "slow_down"):
            status, content = (500, _INTERNAL) if fault == "internal_error" else (503, _SLOW_DOWN)
            self._answer(request, status, {"content-type": "application/xml"}, content)
            return
        if fault == "latency":
            time.sleep(0.3)
        status, headers, content = self._forward(request, body)
        if fault == "lost_answer":
            self._hang_up(request)
        elif fault == "cut_body" and len(content) > 1:
            self._answer(request, status, headers, content, sent=len(content) // 2)
            self._hang_up(request)
        else:
            self._answer(request, status, headers, content)

    def _choose(self, method: str) -> str | None:
        possible = [fault for fault in FAULTS if fault != {"GET": "cut_upload"}.get(method, "cut_body")]
        with self._lock:
            if self._random.random() >= self.rate:
                return None
            fault = self._random.choice(possible)
            self.done[fault] += 1
        return fault

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self._target, timeout=30)
        try:
            connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in {"connection", "expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, dict(response.headers.items()), response.read()
        finally:
            connection.close()

    def _answer(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        content: bytes,
        sent: int | None = None,
    ) -> None:
        request.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_HEADERS and (name.lower() != "content-length" or request.command == "HEAD"):
                request.send_header(name, value)
        if request.command != "HEAD":
            request.send_header("content-length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content[:sent])

    def _hang_up(self, request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        request.wfile.flush()
        request.connection.shutdown(socket.SHUT_RDWR)
