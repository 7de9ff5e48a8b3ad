"""Owns connections and transactions: one write unit and one read unit, the same on SQLite and PostgreSQL.

It must not know any table. Commits happen here and nowhere else: when a `write()` block ends well.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from tunesmith_server.db.news import News, topics_of

_BUSY_TIMEOUT_MS = 15_000
_TRUSTED_SECONDS = 1.0
"""How long a pooled connection may rest before it is asked whether its server is still there."""

DATABASE_FAILURES = (InterfaceError, OperationalError, PoolTimeoutError)
"""What any statement raises while the database is full or away."""

_RETURNED_AT = "tunesmith_returned_at"


class Database:
    """The engine behind two kinds of session, and the news of what was committed through them.

    Heavy work (network, hashing) must stay outside of both kinds.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.news = News()
        self._engine = _create_engine(url)
        reading = self._engine.execution_options(tunesmith_read_only=True)
        self._write = async_sessionmaker(self._engine, expire_on_commit=False)
        # SQLite has one writer at a time. Waiting here is fair and costs nothing, whereas its own waiting is a loop of
        # naps in which somebody may starve.
        self._turn = asyncio.Lock() if self._engine.dialect.name == "sqlite" else nullcontext()
        self._read = async_sessionmaker(reading, expire_on_commit=False)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction that commits when the block ends and rolls back when it raises."""
        async with self._turn, self._write() as session:
            async with session.begin():
                yield session
            self.news.announce(topics_of(session))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A consistent view; what is written through it is never committed."""
        async with self._read() as session:
            yield session

    async def close(self) -> None:
        """Closes every pooled connection."""
        await self._engine.dispose()


def failure_reason(failure: Exception) -> str:
    """What the database's driver says of one of DATABASE_FAILURES, without the statement that met it."""
    return str(getattr(failure, "orig", None) or failure)


def sync_url(url: str) -> str:
    """The URL for a blocking driver, as migrations use it."""
    return _with_driver(url, sqlite="sqlite", postgresql="postgresql+psycopg")


def _create_engine(url: str) -> AsyncEngine:
    target = _with_driver(url, sqlite="sqlite+aiosqlite", postgresql="postgresql+psycopg")
    if not target.startswith("sqlite"):
        engine = create_async_engine(target, pool_size=10, max_overflow=20, hide_parameters=True)
        event.listen(engine.sync_engine, "checkin", _note_return)
        event.listen(engine.sync_engine, "checkout", _Doubt(engine).check)
        return engine
    engine = create_async_engine(target, hide_parameters=True, connect_args={"factory": _SqliteConnection})
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


class _SqliteConnection(sqlite3.Connection):
    """Gives its lock back when it is closed.

    The pool closes a connection whose task was cancelled. The statement that ran then is known to that task's traceback
    still, and for as long as SQLite keeps a closed connection with statements in its transaction: nobody could write.
    """

    def close(self) -> None:
        """Ends the transaction, then the connection."""
        if self.in_transaction:
            self.rollback()
        super().close()


class _Doubt:
    """Asks connections that have rested, as `pool_pre_ping` asks all: under load that is a tenth of a call.

    One that was used a moment ago fails at most the call that takes it, as one fails that is under way in a crash.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._dialect: Any = engine.dialect

    def check(self, connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        """Raises InvalidatePoolError, for which the pool takes a new connection."""
        returned_at = record.info.get(_RETURNED_AT)
        if returned_at is None or time.monotonic() - returned_at < _TRUSTED_SECONDS:
            return
        try:
            self._dialect.do_ping(connection)
        except self._dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error


def _note_return(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[_RETURNED_AT] = time.monotonic()


def _with_driver(url: str, *, sqlite: str, postgresql: str) -> str:
    parsed = make_url(url)
    drivers = {"sqlite": sqlite, "postgresql": postgresql, "postgres": postgresql}
    backend = parsed.drivername.split("+")[0]
    if backend not in drivers:
        raise ValueError(f"TUNESMITH_DATABASE_URL must start with sqlite:// or postgresql://, not {backend}://")
    return parsed.set(drivername=drivers[backend]).render_as_string(hide_password=False)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own transaction handling is switched off so that _begin_sqlite decides how one starts.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a write can fail at once with "database is locked";
    # taking the write lock at the start makes it wait for its turn instead.
    read_only = connection.get_execution_options().get("tunesmith_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
