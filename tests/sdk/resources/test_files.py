"""`client.files`."""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from pathlib import Path

import pytest

from tests.sdk.conftest import Pauses
from tests.support.fake_api import FakeApi, Fault
from tunesmith import AsyncTunesmith, NotFoundError, Tunesmith, WaitTimeoutError
from tunesmith.resources import files
from tunesmith.resources.files import FileSource

ROWS = '{"messages": ["é"]}\n{"messages": []}\n'.encode()


class TestCreate:
    def test_from_a_path(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(ROWS)
        for source in (path, str(path)):
            file = client.files.create(file=source, purpose="fine-tune")
            assert (file.filename, file.bytes, file.purpose) == ("rows.jsonl", len(ROWS), "fine-tune")
            assert api.files[file.id][1] == ROWS

    def test_from_bytes(self, api: FakeApi, client: Tunesmith) -> None:
        file = client.files.create(file=ROWS, purpose="evals")
        assert (file.filename, file.purpose) == ("upload.jsonl", "evals")
        assert api.files[file.id][1] == ROWS

    def test_from_an_open_file(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(ROWS)
        with path.open("rb") as stream:
            stream.read(5)
            file = client.files.create(file=stream)
        assert (file.filename, api.files[file.id][1]) == ("rows.jsonl", ROWS)

    def test_with_a_name(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(ROWS)
        for content in (ROWS, bytearray(ROWS), io.BytesIO(ROWS), path):
            file = client.files.create(file=("mine.jsonl", content))
            assert (file.filename, api.files[file.id][1]) == ("mine.jsonl", ROWS)

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            (("a.jsonl", "text"), "not text"),
            (("a.jsonl", ROWS, "text/plain"), "a pair of name and content"),
            (("a.jsonl", 7), "not int"),
            (None, "not NoneType"),
        ],
    )
    def test_what_cannot_be_sent(self, api: FakeApi, client: Tunesmith, wrong: FileSource, told: str) -> None:
        with pytest.raises(TypeError, match=told):
            client.files.create(file=wrong)
        assert api.received == []

    def test_from_a_pipe_that_cannot_be_read_twice(self, api: FakeApi, client: Tunesmith) -> None:
        reading, writing = os.pipe()
        os.write(writing, ROWS)
        os.close(writing)
        api.faults.append(Fault())
        with os.fdopen(reading, "rb") as stream:
            file = client.files.create(file=stream)
        assert api.files[file.id][1] == ROWS

    def test_from_the_path_of_a_pipe(self, api: FakeApi, client: Tunesmith) -> None:
        reading, writing = os.pipe()
        os.write(writing, ROWS)
        os.close(writing)
        file = client.files.create(file=f"/dev/fd/{reading}")
        os.close(reading)
        assert api.files[file.id][1] == ROWS

    def test_text_mode_is_refused(self, client: Tunesmith, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(ROWS)
        with path.open("r", encoding="utf-8") as stream, pytest.raises(TypeError, match="binary mode"):
            client.files.create(file=stream)  # type: ignore[arg-type] # the mistake under test

    def test_missing_path(self, client: Tunesmith, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            client.files.create(file=tmp_path / "none.jsonl")

    def test_expiry_and_progress(self, api: FakeApi, client: Tunesmith) -> None:
        heard: list[tuple[int, int]] = []
        client.files.create(file=ROWS, expires_after=3600, progress=lambda *counts: heard.append(counts))
        sent = api.received[-1].body
        for field, value in (("expires_after[anchor]", b"created_at"), ("expires_after[seconds]", b"3600")):
            assert re.search(b'name="%s"\r\n\r\n%s\r\n' % (re.escape(field.encode()), value), sent)
        assert heard == [(len(ROWS), len(ROWS))]


class TestCreateInParts:
    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "PART_BYTES", 16)

    def test_a_large_file_goes_in_parts(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(ROWS)
        heard: list[tuple[int, int]] = []
        stored = client.files.create(
            file=path, purpose="evals", expires_after=7200, progress=lambda *counts: heard.append(counts)
        )
        assert (stored.filename, stored.purpose, api.files[stored.id][1]) == ("rows.jsonl", "evals", ROWS)
        ((announced, parts),) = api.uploads.values()
        assert [len(part) for part in parts.values()] == [16, 16, len(ROWS) - 32]
        assert announced["expires_after"] == {"anchor": "created_at", "seconds": 7200}
        assert heard == [(16, len(ROWS)), (32, len(ROWS)), (len(ROWS), len(ROWS))]

    def test_bytes_and_open_files_too(self, api: FakeApi, client: Tunesmith) -> None:
        stream = io.BytesIO(ROWS)
        stream.read(5)
        for source in (ROWS, stream):
            assert api.files[client.files.create(file=source).id][1] == ROWS
        assert len(api.uploads) == 2

    def test_a_part_that_is_lost_is_sent_again(self, api: FakeApi, client: Tunesmith) -> None:
        api.faults.extend([Fault(after_effect=True), Fault()])
        assert api.files[client.files.create(file=ROWS).id][1] == ROWS

    async def test_async_twin(self, api: FakeApi, async_client: AsyncTunesmith) -> None:
        file = await async_client.files.create(file=ROWS)
        assert api.files[file.id][1] == ROWS


class TestCreateOnce:
    def test_the_same_bytes_are_uploaded_once(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
        first.write_bytes(ROWS)
        second.write_bytes(ROWS)
        stored = client.files.create_once(file=first)
        assert client.files.create_once(file=second).id == stored.id
        assert api.received[-1].query == {"purpose": "fine-tune", "sha256": hashlib.sha256(ROWS).hexdigest()}
        assert client.files.create_once(file=first, purpose="evals").id != stored.id

    def test_other_bytes_are_uploaded(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(ROWS)
        client.files.create_once(file=path)
        path.write_bytes(ROWS * 2)
        client.files.create_once(file=path)
        assert len(api.files) == 2

    def test_a_file_that_was_found_broken_is_not_reused(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(ROWS)
        broken = client.files.create_once(file=path)
        api.files[broken.id][0]["status"] = "error"
        assert client.files.create_once(file=path).id != broken.id

    def test_a_file_that_will_expire_is_not_reused(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(ROWS)
        passing = client.files.create_once(file=path)
        api.files[passing.id][0]["expires_at"] = 1_800_000_000
        assert client.files.create_once(file=path).id != passing.id

    def test_a_server_without_the_filter(self, api: FakeApi, client: Tunesmith, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(ROWS)
        other = client.files.create(file=b"other")
        api.ignores_filters = True
        assert client.files.create_once(file=path).id != other.id


class TestWaitForProcessing:
    def test_it_returns_the_processed_file(self, api: FakeApi, client: Tunesmith, pauses: Pauses) -> None:
        file = client.files.create(file=ROWS)
        stored = api.files[file.id][0]
        stored["status"] = "uploaded"
        pauses.on_pause = lambda number: stored.update(status="processed") if number == 3 else None
        assert client.files.wait_for_processing(file.id, poll_interval=2).status == "processed"
        assert pauses.lengths == [2, 2, 2]

    def test_it_outlasts_a_restart(self, api: FakeApi, client: Tunesmith, pauses: Pauses) -> None:
        file = client.files.create(file=ROWS)
        stored = api.files[file.id][0]
        stored["status"] = "uploaded"

        def back() -> None:
            stored["status"] = "processed"
            api.start()

        pauses.on_pause = lambda number: {1: api.stop, 20: back}.get(number, lambda: None)()
        assert client.files.wait_for_processing(file.id).status == "processed"

    def test_it_gives_up(self, api: FakeApi, client: Tunesmith) -> None:
        file = client.files.create(file=ROWS)
        api.files[file.id][0]["status"] = "uploaded"
        with pytest.raises(WaitTimeoutError, match="still uploaded after 0 seconds"):
            client.files.wait_for_processing(file.id, timeout=0)


class TestOtherVerbs:
    def test_retrieve_content_list_delete(self, client: Tunesmith) -> None:
        file = client.files.create(file=ROWS)
        assert client.files.retrieve(file.id) == file
        assert client.files.content(file.id) == ROWS
        assert [listed.id for listed in client.files.list(purpose="fine-tune")] == [file.id]
        assert client.files.delete(file.id).deleted
        with pytest.raises(NotFoundError):
            client.files.retrieve(file.id)

    async def test_async_twin(self, async_client: AsyncTunesmith, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(ROWS)
        file = await async_client.files.create(file=path)
        assert (await async_client.files.create_once(file=path)).id == file.id
        assert await async_client.files.content(file.id) == ROWS
        assert (await async_client.files.wait_for_processing(file.id)).id == file.id
        assert [listed.id async for listed in async_client.files.list()] == [file.id]
        assert (await async_client.files.delete(file.id)).deleted


def test_one_client_serves_several_threads(api: FakeApi, client: Tunesmith) -> None:
    threads = [threading.Thread(target=lambda: client.files.create(file=ROWS)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.files) == 8
