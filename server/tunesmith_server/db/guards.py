"""Owns what the database itself refuses, whoever asks: a change to what an ended job has come to.

It must not know why rows change. The table of jobs attaches it, so that those made without a migration have it as well.
"""

from __future__ import annotations

from sqlalchemy import DDL, Table, event

ENDED_STATES = ("succeeded", "failed", "cancelled")
FROZEN_COLUMNS = (
    "state",
    "lease_token",
    "epoch",
    "fine_tuned_model",
    "revision",
    "evaluation",
    "result_file_ids",
    "trained_tokens",
    "error_code",
    "error_message",
    "error_param",
    "finished_at",
)
"""What a job has come to. The rest (time used, lines of its history) may be written after its end."""
TRIGGER = "fine_tunes_keep_ended"

_MESSAGE = "an ended job never changes"


def keep_ended_jobs(table: Table) -> None:
    """Has the triggers made together with the table."""
    for dialect, statements in (("sqlite", _sqlite()), ("postgresql", _postgresql())):
        for statement in statements:
            event.listen(table, "after_create", _ddl(statement).execute_if(dialect=dialect))


def _ddl(statement: str) -> DDL:
    return DDL(statement)  # type: ignore[no-untyped-call]  # SQLAlchemy gives its constructor no types


def _sqlite() -> list[str]:
    changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in FROZEN_COLUMNS)
    return [
        f"CREATE TRIGGER {TRIGGER} BEFORE UPDATE ON fine_tunes FOR EACH ROW "
        f"WHEN OLD.state IN {ENDED_STATES} AND ({changed}) "
        f"BEGIN SELECT RAISE(ABORT, '{_MESSAGE}'); END"
    ]


def _postgresql() -> list[str]:
    # As text: the type json has no equality.
    changed = " OR ".join(f"NEW.{column}::text IS DISTINCT FROM OLD.{column}::text" for column in FROZEN_COLUMNS)
    return [
        f"CREATE OR REPLACE FUNCTION {TRIGGER}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_MESSAGE}' USING ERRCODE = 'restrict_violation'; END $$",
        f"CREATE TRIGGER {TRIGGER} BEFORE UPDATE ON fine_tunes FOR EACH ROW "
        f"WHEN (OLD.state IN {ENDED_STATES} AND ({changed})) EXECUTE FUNCTION {TRIGGER}()",
    ]
