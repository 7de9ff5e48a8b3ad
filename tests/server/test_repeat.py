"""A task beside the servers goes on through failures, and the log says each of them once."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from tunesmith_server.repeat import repeat


async def test_a_failing_database_is_told_once_and_again_when_it_fails_otherwise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = ["full", "full", "away", None, "away", "away"]
    done = asyncio.Event()

    async def step() -> None:
        if not failures:
            done.set()
        elif (reason := failures.pop(0)) is not None:
            raise OperationalError("UPDATE", {}, OSError(reason))

    task = asyncio.create_task(repeat(step, 0.0))
    await asyncio.wait_for(done.wait(), 10)
    task.cancel()

    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["full", "away", "away"]
    assert not any(record.exc_info for record in caplog.records)
