"""What strangers may send to a running server: it refuses in its own words, stays up, and tells its log nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.live_server import LiveServer

pytestmark = pytest.mark.e2e

SECRET_ROW = "the-patient-is-called-Zebulon"
API_KEY = "ts-a-key-that-must-never-be-logged"
MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A platform without an engine, with a small limit for bodies."""
    environment = {"TUNESMITH_API_KEY": API_KEY, "TUNESMITH_MAX_BODY_BYTES": str(MEBIBYTE)}
    with LiveServer(tmp_path_factory.mktemp("home"), environment=environment) as running:
        yield running
        assert running.request("GET", "/files").status_code == 200, "the server did not survive"


def raw(server: LiveServer, request: bytes) -> bytes:
    """Sends bytes as they are and returns the first line of the answer; empty when the connection was just closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        try:
            connection.sendall(request)
            return connection.recv(65536).partition(b"\r\n")[0]
        except ConnectionError:
            return b""


def rows(text: str) -> bytes:
    """Ten good rows."""
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]
    return b"\n".join(json.dumps({"messages": messages}).encode() for _ in range(10))


@pytest.mark.parametrize(
    "headers",
    [
        b"X-Long: " + b"a" * 200_000 + b"\r\n",
        b"".join(b"X-%d: %s\r\n" % (number, b"a" * 500) for number in range(1000)),
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Bad\x00Name: x\r\n",
    ],
    ids=["long", "many", "two-lengths", "negative-length", "smuggling", "nul"],
)
def test_headers_beyond_reason_are_refused(server: LiveServer, headers: bytes) -> None:
    line = raw(server, b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\nhello\r\n0\r\n\r\n")
    assert line == b"" or line.split()[1][:1] == b"4", line


def test_a_body_over_the_limit_is_refused_while_it_arrives(server: LiveServer) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * MEBIBYTE

    answer = server.request(
        "POST", "/fine_tuning/jobs", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"seed": 1e400}',
        b'{"seed": ' + b"9" * 20_000 + b"}",
        b"\xff\xfe",
        b'"\\ud800"',
    ],
    ids=["deep-list", "deep-object", "infinite", "huge-integer", "no-utf8", "lone-surrogate"],
)
def test_json_bombs_are_bad_requests(server: LiveServer, body: bytes) -> None:
    answer = server.request("POST", "/fine_tuning/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/..%2f..%2fapi_key/content",
        "/v1/files/%2e%2e%2fsecret_key",
        "/v1/models/..%2f..%2fsecret_key",
        "/internal/objects/..%2f..%2fsecret_key",
        "/internal/objects/%2fetc%2fpasswd",
        "/internal/objects/files%2f..%2f..%2ftunesmith.db",
        "/v1/fine_tuning/jobs/..%2f..%2fsecret_key/events",
    ],
)
def test_paths_do_not_climb(server: LiveServer, path: str) -> None:
    line = raw(server, f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n\r\n".encode())
    assert line.split()[1] in (b"400", b"401", b"403", b"404"), line


@pytest.mark.parametrize(
    "name", ["../../../evil.jsonl", "/etc/cron.d/evil", "..\\evil", "a/b/../../../c", "." * 300, "a\nb"]
)
def test_a_file_name_is_a_label_and_no_path(server: LiveServer, name: str, tmp_path: Path) -> None:
    before = {path for path in server.home.parent.rglob("*") if not path.is_relative_to(server.home)}
    answer = server.request("POST", "/files", data={"purpose": "fine-tune"}, files={"file": (name, rows("a"))})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        content = server.request("GET", f"/files/{answer.json()['id']}/content")
        assert content.content == rows("a")
        assert "\n" not in content.headers.get("content-disposition", "")
    assert {path for path in server.home.parent.rglob("*") if not path.is_relative_to(server.home)} == before
    assert not any("evil" in path.name for path in server.home.rglob("*"))


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04" + b"\x00" * 100, b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00c", b"\x1f\x8b\x08" + b"\x00" * 50],
    ids=["zip", "pickle", "gzip"],
)
def test_archives_and_pickles_are_no_dataset(server: LiveServer, content: bytes) -> None:
    answer = server.request("POST", "/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", content)})
    assert answer.status_code == 400, answer.text


def test_neither_keys_nor_rows_reach_the_log_or_the_disk_in_clear(server: LiveServer) -> None:
    good = server.request("POST", "/files", data={"purpose": "fine-tune"}, files={"file": ("a", rows(SECRET_ROW))})
    assert good.status_code == 200, good.text
    bad = rows(SECRET_ROW) + b'\n{"messages": "' + SECRET_ROW.encode() + b'"}'
    assert (
        server.request("POST", "/files", data={"purpose": "fine-tune"}, files={"file": ("b", bad)}).status_code == 400
    )
    wrong = {"Authorization": "Bearer ts-a-wrong-key-of-somebody"}
    assert httpx.get(f"{server.url}/v1/files", headers=wrong).status_code == 401
    assert (
        server.request("POST", "/fine_tuning/jobs", json={"model": SECRET_ROW, "training_file": "x"}).status_code == 400
    )
    lines = server.stderr
    assert "call answered" in lines
    for secret in (SECRET_ROW, API_KEY, "ts-a-wrong-key-of-somebody", (server.home / "secret_key").read_text().strip()):
        assert secret not in lines
    database = b"".join(path.read_bytes() for path in server.home.glob("tunesmith.db*"))
    assert API_KEY.encode() not in database
