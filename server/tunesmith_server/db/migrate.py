"""Owns bringing a database to the newest schema, at every start of the server.

It must not know any table. `python -m tunesmith_server.db.migrate "what changes"` drafts the next migration.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, text

from tunesmith_server.db.session import sync_url

_LOCK_NUMBER = 7_265_310_918
_LOCK_SECONDS = 120


class NewerSchemaError(ValueError):
    """The database belongs to a newer server; the message tells the operator what to do."""


def is_new(url: str) -> bool:
    """Whether no server has made its tables there yet. Makes nothing itself. Blocks."""
    engine = create_engine(sync_url(url))
    try:
        if engine.dialect.name == "sqlite" and not _file(engine.url.database).exists():
            return True
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision() is None
    finally:
        engine.dispose()


def upgrade(url: str) -> None:
    """Applies what is missing, whole or not at all. Servers that start together take turns. Blocks.

    Raises NewerSchemaError, and changes nothing, where a newer server was here.
    """
    with _locked_connection(url) as connection:
        config = _config(connection)
        _refuse_newer(connection, config)
        command.upgrade(config, "head")


def draft(message: str) -> None:
    """Writes the migration from the newest one to tables.py, for a person to read and correct."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/head.db"
        upgrade(url)
        with _locked_connection(url) as connection:
            config = _config(connection)
            number = len(list(Path(__file__).with_name("migrations").glob("versions/*.py"))) + 1
            command.revision(config, message, autogenerate=True, rev_id=f"{number:04}")


def _refuse_newer(connection: Connection, config: Config) -> None:
    schema = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if schema is not None and schema not in known:
        raise NewerSchemaError(
            f"A newer Tunesmith has brought the database to schema {schema}; this one knows {max(known)}. "
            "Start the newer one, or go back to a backup from before its first start."
        )


@contextmanager
def _locked_connection(url: str) -> Iterator[Connection]:
    """One transaction that no second migration can have at the same time."""
    target = sync_url(url)
    is_sqlite = target.startswith("sqlite")
    engine = create_engine(target, connect_args={"timeout": _LOCK_SECONDS} if is_sqlite else {})
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_exclusively)
    try:
        with _turn(engine.url.database) if is_sqlite else nullcontext(), engine.begin() as connection:
            if not is_sqlite:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_NUMBER})"))
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _turn(database: str | None) -> Iterator[None]:
    """Held while SQLite goes over to its write-ahead log, which fails at once beside a writer, and by all such writers.

    A lock of the folder: to close a handle of the database itself would end SQLite's own locks.
    """
    folder = os.open(_file(database).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _file(database: str | None) -> Path:
    return Path((database or ".").removeprefix("file:"))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would commit at each DDL statement; here a migration is one transaction.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")


def _begin_exclusively(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


if __name__ == "__main__":
    draft(sys.argv[1])
