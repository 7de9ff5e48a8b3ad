"""Every call that changes something leaves one line, whichever way it came; nothing can break the call itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from prometheus_client import REGISTRY
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.administration import Installation
from tunesmith_proto.files.v1 import files_pb2, files_pb2_grpc
from tunesmith_server.audit.repository import AuditQuery
from tunesmith_server.audit.service import AuditLog
from tunesmith_server.calls import Call
from tunesmith_server.core import Core
from tunesmith_server.db.session import Database
from tunesmith_server.db.tables import AuditRow

ROW = b'{"prompt":"a secret of the data","completion":"b"}\n'


async def lines(log: AuditLog, **which: Any) -> list[AuditRow]:
    await log.flush()
    return (await log.list(AuditQuery(**({"limit": 100} | which)))).lines


def shown(rows: list[AuditRow]) -> list[tuple[str, str | None, str]]:
    return [(row.action, row.target_id, row.outcome) for row in rows]


async def test_rest_calls_leave_lines(each_installation: Installation) -> None:
    log = each_installation.part.audit
    async with await each_installation.http() as http:
        upload = {"file": ("rows.jsonl", ROW * 10)}
        made = await http.post("/v1/files", data={"purpose": "fine-tune"}, files=upload, headers={"x-request-id": "r1"})
        file_id = made.json()["id"]
        await http.get(f"/v1/files/{file_id}")
        await http.delete(f"/v1/files/{file_id}")
        await http.delete(f"/v1/files/{file_id}")
    async with await each_installation.http("files.read") as http:
        await http.delete(f"/v1/files/{file_id}")
        await http.get("/v1/models")
    async with await each_installation.http() as http:
        await http.delete(f"/v1/files/{file_id}", headers={"authorization": "Bearer nobody"})

    rows = await lines(log)
    assert shown(rows) == [
        ("GET /v1/models", None, "missing_scope"),
        ("file.deleted", file_id, "missing_scope"),
        ("file.deleted", file_id, "file_not_found"),
        ("file.deleted", file_id, "ok"),
        ("file.created", file_id, "ok"),
    ]
    assert (rows[-1].project_id, rows[-1].request_id) == ("default", "r1")
    assert rows[-1].key_id != rows[0].key_id


async def test_rpcs_leave_the_same_lines(installation: Installation) -> None:
    async with installation.channel() as channel:
        stub: Any = files_pb2_grpc.FilesServiceStub(channel)
        metadata = [*await installation.metadata(), ("x-request-id", "r1")]
        info = files_pb2.CreateFileRequest(info=files_pb2.FileInfo(filename="rows.jsonl", purpose="fine-tune"))
        made = await stub.CreateFile(iter([info, files_pb2.CreateFileRequest(chunk=ROW * 10)]), metadata=metadata)
        await stub.GetFile(files_pb2.GetFileRequest(id=made.file.id), metadata=metadata)
        await stub.DeleteFile(files_pb2.DeleteFileRequest(id=made.file.id), metadata=metadata)
        narrow = await installation.metadata("inference")
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.DeleteFile(files_pb2.DeleteFileRequest(id=made.file.id), metadata=narrow)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.DownloadFile(files_pb2.DownloadFileRequest(id=made.file.id), metadata=narrow).read()
    rows = await lines(installation.part.audit)
    assert shown(rows) == [
        ("/tunesmith.files.v1.FilesService/DownloadFile", made.file.id, "missing_scope"),
        ("file.deleted", made.file.id, "missing_scope"),
        ("file.deleted", made.file.id, "ok"),
        ("file.created", made.file.id, "ok"),
    ]
    assert rows[-1].request_id == "r1"


async def test_lines_hold_no_data_and_nothing_made_up(installation: Installation) -> None:
    async with await installation.http() as http:
        await http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", ROW * 10)})
        await http.delete("/v1/files/" + "x" * 1000)
        await http.delete("/v1/files/a%00b")
    rows = await lines(installation.part.audit)
    assert [row.target_id for row in rows][:2] == [None, None]
    assert all("secret" not in str(vars(row)) for row in rows)


async def test_a_database_that_is_away_breaks_no_call_and_loses_no_line(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = installation.part.audit

    def down(_database: Database) -> None:
        raise OperationalError("BEGIN", {}, OSError("gone"))

    before = REGISTRY.get_sample_value("tunesmith_audit_write_failures_total") or 0
    async with await installation.http() as http:
        await http.delete("/v1/files/file-1")
        with monkeypatch.context() as broken:
            broken.setattr(Database, "write", down)
            with pytest.raises(OperationalError):
                await log.flush()
            assert (await http.delete("/v1/files/file-2")).status_code == 404
    assert REGISTRY.get_sample_value("tunesmith_audit_write_failures_total") == before + 1
    assert [row.target_id for row in await lines(log)] == ["file-2", "file-1"]


async def test_what_waits_is_bounded(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith_server.audit.service._MAX_WAITING", 3)
    log = AuditLog(core)
    for number in range(5):
        log.record(deleted(number))
    assert [row.target_id for row in await lines(log)] == ["file-4", "file-3", "file-2"]


async def test_lines_whose_commit_was_not_heard_of_are_written_once(
    each_core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(each_core)
    log.record(deleted(1))
    write = Database.write

    @asynccontextmanager
    async def unheard(database: Database) -> AsyncIterator[AsyncSession]:
        async with write(database) as session:
            yield session
        raise OperationalError("COMMIT", {}, OSError("the connection broke"))

    with monkeypatch.context() as broken:
        broken.setattr(Database, "write", unheard)
        with pytest.raises(OperationalError):
            await log.flush()
    log.record(deleted(2))
    assert [row.target_id for row in await lines(log)] == ["file-2", "file-1"]


async def test_what_waits_is_bounded_also_when_a_batch_comes_back(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith_server.audit.service._MAX_WAITING", 3)
    log = AuditLog(core)
    log.record(deleted(0))

    def down(_database: Database) -> None:
        for number in range(1, 4):
            log.record(deleted(number))
        raise OperationalError("BEGIN", {}, OSError("gone"))

    with monkeypatch.context() as broken:
        broken.setattr(Database, "write", down)
        with pytest.raises(OperationalError):
            await log.flush()
    log.record(deleted(4))
    assert [row.target_id for row in await lines(log)] == ["file-4", "file-3", "file-2"]


async def test_the_log_is_read_in_pages_and_parts(each_core: Core) -> None:
    log = AuditLog(each_core)
    for number in range(5):
        log.record(deleted(number))
        each_core.clock.advance(10)  # type: ignore[attr-defined]
    log.record(Call("r", "POST /v1/files", "other", "key_b", "file-x"))
    first = await lines(log, limit=2)
    second = await log.list(AuditQuery(2), after=first[-1].id)
    assert [row.target_id for row in (*first, *second.lines)] == ["file-x", "file-4", "file-3", "file-2"]
    assert second.has_more

    assert len(await lines(log, project_ids=["other"])) == 1
    assert len(await lines(log, key_ids=["key_a"], actions=["file.deleted"], target_ids=["file-1", "file-2"])) == 2
    start = first[-1].created_at - 40
    assert [row.target_id for row in await lines(log, since=start, until=start + 20)] == ["file-1", "file-0"]


def deleted(number: int) -> Call:
    """A call that deleted a file."""
    return Call("r", "DELETE /v1/files/{file_id}", "default", "key_a", f"file-{number}")


async def test_a_caller_that_goes_away_is_told_apart(installation: Installation) -> None:
    async def leave() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def nobody_hears(_message: Any) -> None:
        pass

    key = f"Bearer {await installation.key()}".encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/files", "raw_path": b"/v1/files", "query_string": b""}
    scope |= {"headers": [(b"authorization", key), (b"content-type", b"multipart/form-data; boundary=x")]}
    scope |= {"http_version": "1.1", "scheme": "http", "root_path": "", "server": ("test", 80), "client": ("test", 1)}
    await installation.application.http(scope, leave, nobody_hears)
    assert shown(await lines(installation.part.audit)) == [("file.created", None, "aborted")]
