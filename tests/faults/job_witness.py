"""Owns what is stored of jobs, and every change of them as the database itself has seen it.

It must not know what led to it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, text

from tunesmith_server.db.session import Database
from tunesmith_server.db.tables import AttemptRow, EventRow, FineTuneRow, OutboxRow
from tunesmith_server.fine_tunes.announcements import EVENT_TYPES
from tunesmith_server.fine_tunes.state import State

# The database itself writes down every change of a job, also those between which nobody looks.
_WITNESS = """
CREATE TABLE moves (job TEXT, old TEXT, new TEXT, epochs INTEGER, old_lease TEXT, new_lease TEXT, events INTEGER);
CREATE TRIGGER moves AFTER UPDATE ON fine_tunes FOR EACH ROW BEGIN INSERT INTO moves VALUES
(NEW.id, OLD.state, NEW.state, NEW.epoch - OLD.epoch, OLD.lease_token, NEW.lease_token,
NEW.event_count - OLD.event_count);
END
"""


class JobWitness:
    """Reads an SQLite database in which `watch` has been called once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def watch(self) -> None:
        """Has the database write changes down from now on."""
        table, _, trigger = _WITNESS.strip().partition("\n")
        async with self._database.write() as session:
            await session.execute(text(table))
            await session.execute(text(trigger))

    async def rows(self) -> dict[str, FineTuneRow]:
        """All jobs, by id."""
        async with self._database.read() as session:
            return {job.id: job for job in await session.scalars(select(FineTuneRow))}

    async def attempts(self) -> list[AttemptRow]:
        """All attempts."""
        async with self._database.read() as session:
            return list(await session.scalars(select(AttemptRow)))

    async def told(self, job_id: str) -> list[str]:
        """The endings of the job that the outside hears of."""
        async with self._database.read() as session:
            rows = await session.scalars(select(OutboxRow.type).where(OutboxRow.subject_id == job_id))
            return [kind for kind in rows if kind != EVENT_TYPES[State.PAUSED]]

    async def history(self, job_id: str) -> tuple[list[int], list[int]]:
        """Numbers of the lines of its history, and the steps that are told there."""
        async with self._database.read() as session:
            lines = list(
                await session.scalars(select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.number))
            )
        steps = [line.data["step"] for line in lines if line.type == "metrics" and line.data]
        return [line.number for line in lines], steps

    async def take_moves(self) -> list[Any]:
        """Every change since the last call: job, states, epochs gained, leases, lines gained."""
        async with self._database.write() as session:
            moves = list(await session.execute(text("SELECT * FROM moves ORDER BY rowid")))
            await session.execute(text("DELETE FROM moves"))
            return moves
