"""Owns a real HTTP server on loopback that answers by a function.
Must not know what is asked or answered.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Received:
    """One request as it came in; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The decoded body."""
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded


@dataclass(frozen=True)
class Answer:
    """What goes back; `pieces` are sent one by one with chunked encoding in place of `body`."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: Sequence[bytes] | None = None
    cut_off: bool = False


class LoopbackServer(ThreadingHTTPServer):
    """Answers every request with what `respond` returns; None closes the connection without an answer."""

    daemon_threads = True

    def __init__(self, port: int, respond: Callable[[Received], Answer | None]) -> None:
        self.respond = respond
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Exchange)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def stop(self) -> None:
        """Stop listening, and cut what clients keep alive: their next request must meet the closed port."""
        self.shutdown()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackServer

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._exchange
        raise AttributeError(name)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Stay quiet."""

    def _exchange(self) -> None:
        parts = urlsplit(self.path)
        answer = self.server.respond(
            Received(
                method=self.command,
                path=parts.path,
                query={name: values[0] for name, values in parse_qs(parts.query).items()},
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self._body(),
            )
        )
        if answer is None:
            self.close_connection = True
        else:
            self._send(answer)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in ({"x-request-id": "req-1"} | dict(answer.headers)).items():
            self.send_header(name, value)
        if answer.pieces is None:
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in answer.pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if answer.cut_off:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")
