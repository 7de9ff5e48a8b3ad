"""The database itself keeps ended jobs as they are, on both kinds, whoever asks."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.db.guards import ENDED_STATES, FROZEN_COLUMNS
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.fine_tunes.state import TERMINAL, State

CHANGES: dict[str, Any] = {
    "state": "queued",
    "lease_token": "attempt-1",
    "epoch": 7,
    "evaluation": {"rows": 1},
    "result_file_ids": ["file-1"],
    "trained_tokens": 1,
    "finished_at": 1,
}
OTHER = "other"


def test_the_ended_states_are_those_of_the_state_table() -> None:
    assert set(ENDED_STATES) == TERMINAL


@pytest.mark.parametrize("column", FROZEN_COLUMNS)
async def test_an_ended_job_cannot_change(platform: Platform, column: str) -> None:
    job_id = await platform.create()
    await platform.fine_tunes.cancel(PRINCIPAL, job_id)
    with pytest.raises(IntegrityError, match="an ended job never changes"):
        await write(platform, job_id, {column: CHANGES.get(column, OTHER)})


async def test_both_databases_keep_ended_jobs_and_let_the_rest_be_written(each_platform: Platform) -> None:
    job_id = await each_platform.create()
    await write(each_platform, job_id, {"error_code": "none_yet", "trained_tokens": 3})
    await each_platform.fine_tunes.cancel(PRINCIPAL, job_id)
    await write(each_platform, job_id, {"run_seconds": 2.0, "state": "cancelled", "trained_tokens": 3})
    for column in ("state", "evaluation"):
        with pytest.raises(IntegrityError, match="an ended job never changes"):
            await write(each_platform, job_id, {column: CHANGES.get(column, OTHER)})
    row = await each_platform.row(job_id)
    assert (row.state, row.run_seconds) == (State.CANCELLED, 2.0)


async def write(platform: Platform, job_id: str, values: dict[str, Any]) -> None:
    """Changes the row behind the repository's back."""
    async with platform.core.database.write() as session:
        await session.execute(update(FineTuneRow).where(FineTuneRow.id == job_id).values(**values))
