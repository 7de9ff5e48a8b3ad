"""Transfers: whole, checked, resumable, and never outside their folder."""

import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tunesmith_trainer.errors import BadSpec, InfrastructureFailed
from tunesmith_trainer.transfer import (
    LocalFile,
    ObjectDamaged,
    Remote,
    cached_base_model,
    download,
    draft,
    list_files,
    manifest_bytes,
    safe_path,
    upload,
)

DATA = bytes(range(256)) * 40


class Store:
    """An HTTP server with faults. `breaks` GETs end half-way; `statuses` come before anything else, with `words`."""

    def __init__(self) -> None:
        self.breaks = 0
        self.statuses: list[int] = []
        self.words = b""
        self.content = DATA
        self.ranges: list[str | None] = []
        self.stored: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        store = self

        class Requests(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                store.ranges.append(self.headers.get("Range"))
                if store.statuses:
                    return self.refuse(store.statuses.pop(0))
                match = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
                rest = store.content[int(match.group(1)) if match else 0 :]
                self.send_response(206 if match else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                if store.breaks:
                    store.breaks -= 1
                    self.close_connection = True
                    self.wfile.write(rest[: len(rest) // 2])
                    return None
                self.wfile.write(rest)
                return None

            def do_PUT(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if store.statuses:
                    return self.refuse(store.statuses.pop(0))
                store.stored[self.path] = data
                store.headers = dict(self.headers.items())
                return self.refuse(200)

            def refuse(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(store.words)))
                self.end_headers()
                self.wfile.write(store.words)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  the base's name
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/object?signature=secret"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.server.shutdown()
    made.server.server_close()


def no_pause(_: float) -> None:
    """Retries at once."""


def remote(store: Store, path: str = "a/b.bin", data: bytes = DATA) -> Remote:
    return Remote(path, len(data), hashlib.sha256(data).hexdigest(), store.url)


def test_a_broken_download_goes_on_where_it_stopped(store: Store, tmp_path: Path) -> None:
    store.breaks = 1
    download([remote(store)], tmp_path, no_pause)

    assert (tmp_path / "a/b.bin").read_bytes() == DATA
    assert store.ranges == [None, f"bytes={len(DATA) // 2}-"]


def test_other_bytes_than_announced_are_refused(store: Store, tmp_path: Path) -> None:
    store.content = DATA[::-1]
    with pytest.raises(InfrastructureFailed):
        download([remote(store)], tmp_path, no_pause)
    assert list(tmp_path.rglob("*.bin")) == []


def test_more_bytes_than_announced_are_refused(store: Store, tmp_path: Path) -> None:
    store.content = DATA * 3
    with pytest.raises(InfrastructureFailed):
        download([remote(store)], tmp_path, no_pause)


@pytest.mark.parametrize(
    "words", [b"<Error><Code>NoSuchKey</Code></Error>", b'{"error": {"code": "object_not_found"}}']
)
def test_a_file_that_is_gone_is_damaged(store: Store, tmp_path: Path, words: bytes) -> None:
    store.statuses, store.words = [404] * 3, words
    with pytest.raises(ObjectDamaged):
        download([remote(store)], tmp_path, no_pause)
    assert store.statuses == []


def test_a_bucket_that_is_gone_damages_nothing(store: Store, tmp_path: Path) -> None:
    store.statuses, store.words = [404], b"<Error><Code>NoSuchBucket</Code></Error>"
    with pytest.raises(InfrastructureFailed, match="404") as refused:
        download([remote(store)], tmp_path, no_pause)
    assert not isinstance(refused.value, ObjectDamaged)


def test_an_empty_file_can_be_fetched(store: Store, tmp_path: Path) -> None:
    store.content = b""
    download([remote(store, data=b"")], tmp_path, no_pause)
    assert (tmp_path / "a/b.bin").read_bytes() == b""


@pytest.mark.parametrize("path", ["../a", "/a", "a/../../b", "a\\b", "", "a//b", "./a", "c:a", "a\0b"])
def test_paths_that_leave_their_folder_are_refused(path: str) -> None:
    with pytest.raises(BadSpec):
        safe_path(path)


def test_an_upload_is_repeated_while_storage_is_ill_and_sends_its_headers(store: Store, tmp_path: Path) -> None:
    store.statuses = [503, 500]
    source = tmp_path / "weights"
    source.write_bytes(DATA)
    upload(source, store.url, {"x-amz-checksum": "abc", "content-length": str(len(DATA))}, no_pause)

    assert store.stored == {"/object?signature=secret": DATA}
    assert store.headers["x-amz-checksum"] == "abc"


def test_a_refused_upload_is_not_repeated_and_does_not_tell_the_url(store: Store, tmp_path: Path) -> None:
    store.statuses = [403]
    source = tmp_path / "weights"
    source.write_bytes(DATA)
    with pytest.raises(InfrastructureFailed) as refused:
        upload(source, store.url, {}, no_pause)
    assert "secret" not in str(refused.value)
    assert store.statuses == []


def test_a_draft_goes_with_its_block_and_takes_those_of_killed_processes_along(tmp_path: Path) -> None:
    fill = "import sys, pathlib, tunesmith_trainer.transfer as t\nwith t.draft(pathlib.Path(sys.argv[1])) as folder: "
    fill += "(folder / 'weights').touch(); print(folder, flush=True); sys.stdin.read()"
    begin = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with begin([sys.executable, "-c", fill, str(tmp_path)]) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with draft(tmp_path) as ours:
            assert sorted(tmp_path.iterdir()) == sorted([theirs, ours]), "a living process keeps its own"
        assert list(tmp_path.iterdir()) == [theirs]
        other.kill()
    with draft(tmp_path) as ours:
        assert list(tmp_path.iterdir()) == [ours]
    assert list(tmp_path.iterdir()) == []


def test_a_base_model_is_cached_under_its_manifest(store: Store, tmp_path: Path) -> None:
    file = remote(store, "config.json")
    manifest = manifest_bytes("tiny", [LocalFile(file.path, file.size, file.sha256)])
    revision = hashlib.sha256(manifest).hexdigest()
    folder = cached_base_model(tmp_path, "tiny", revision, [file])
    again = cached_base_model(tmp_path, "tiny", revision, [file])

    assert folder == again == tmp_path / "base_models" / revision
    assert (folder / "manifest.json").read_bytes() == manifest
    assert len(store.ranges) == 1
    assert [path.name for path in (tmp_path / "base_models").iterdir()] == [revision]


def test_a_base_model_that_is_not_its_revision_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadSpec):
        cached_base_model(tmp_path, "tiny", "0" * 64, [remote(store)])


def test_files_are_listed_with_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/two").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"")

    assert list_files(tmp_path) == [
        LocalFile("a", 0, hashlib.sha256(b"").hexdigest()),
        LocalFile("b/two", 1, hashlib.sha256(b"2").hexdigest()),
    ]
