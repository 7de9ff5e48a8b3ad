"""Log lines are JSON objects, one per line."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from tunesmith_server.telemetry import choose_request_id, configure_logging, record_call, unexpected


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.usefixtures("restored_logging")
def test_lines_are_json_with_their_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    record_call("http", "GET /v1/files", "200", 0.0123, "req_1")
    unexpected(ValueError("line 1\nline 2"), "GET /v1/files", "req_2")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["level"], first["message"], first["milliseconds"]) == ("info", "call answered", 12.3)
    assert (second["level"], second["request_id"]) == ("error", "req_2")
    assert "line 2" in second["exception"]


def test_a_full_disk_is_told_apart_from_a_defect() -> None:
    error = unexpected(OSError(errno.ENOSPC, "No space left on device"), "POST /v1/files", "req_1")
    assert error.code == "storage_full"


def test_a_full_database_is_a_full_disk() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
        connection.exec_driver_sql("PRAGMA max_page_count = 3")
        with pytest.raises(OperationalError) as caught:
            connection.exec_driver_sql("INSERT INTO t VALUES (zeroblob(100000))")
    engine.dispose()
    postgres = OperationalError("INSERT", None, psycopg.errors.DiskFull("No space left on device"))
    for error in (caught.value, postgres):
        assert unexpected(error, "POST /v1/fine_tuning/jobs", "req_1").code == "storage_full"


def test_a_failing_database_takes_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    error = unexpected(OperationalError("UPDATE", {}, OSError("away")), "POST /v1/files", "req_1")
    assert error.code == "database_unavailable"
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info) == ("the database failed: away", None)


def test_only_harmless_request_ids_are_taken_over() -> None:
    assert choose_request_id("abc-1._") == "abc-1._"
    for hostile in (None, "", "a\nb", "a" * 129, "a b"):
        assert choose_request_id(hostile).startswith("req_")
