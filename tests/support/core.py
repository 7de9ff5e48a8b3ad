"""Owns cores for server tests: the embedded kind (SQLite, folder) and the cluster kind (PostgreSQL, S3)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import StaticPool, create_engine, make_url

from tests.support.clock import MovableClock
from tests.support.postgres import PostgresServer
from tests.support.s3_server import BUCKET, S3Server
from tunesmith_server.auth import Signer
from tunesmith_server.config import Settings
from tunesmith_server.core import Core
from tunesmith_server.db.session import Database, sync_url
from tunesmith_server.db.tables import Base
from tunesmith_server.storage.open import open_store

Kind = Literal["embedded", "cluster"]

_prefixes = itertools.count()


@asynccontextmanager
async def open_core(home: Path, clock: MovableClock | None = None, **settings: Any) -> AsyncIterator[Core]:
    """A core with all tables made; embedded unless `database_url` and `storage_url` say otherwise."""
    made = make_core(Settings(home=home, **settings), clock or MovableClock())
    try:
        yield made
    finally:
        await made.database.close()


def make_core(settings: Settings, clock: MovableClock) -> Core:
    """A core whose database the caller closes; a PostgreSQL database has its tables already."""
    settings.home.mkdir(parents=True, exist_ok=True)
    if not settings.database_url:
        database_file = settings.home / "tunesmith.db"
        if not database_file.exists():
            database_file.write_bytes(_sqlite_image())
    signer = Signer(b"test-secret")
    database = Database(settings.resolved_database_url)
    return Core(settings, database, open_store(settings, signer, clock), signer, clock)


@functools.cache
def _sqlite_image() -> bytes:
    """A database file with all tables, made once, since every statement would wait for the disk otherwise."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        image: bytes = connection.connection.driver_connection.serialize()  # type: ignore[union-attr]  # sqlite3's own
    engine.dispose()
    return image


@pytest.fixture
def clock() -> MovableClock:
    """The clock of the test's core."""
    return MovableClock()


@pytest.fixture
async def core(tmp_path: Path, clock: MovableClock) -> AsyncIterator[Core]:
    """A core on SQLite and a folder."""
    async with open_core(tmp_path / "home", clock) as made:
        yield made


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> str:
    """Name of a database with all tables in it, to copy."""
    url = postgres.create_database()
    engine = create_engine(sync_url(url))
    Base.metadata.create_all(engine)
    engine.dispose()
    return str(make_url(url).database)


@pytest.fixture
def cluster_settings(
    postgres: PostgresServer, postgres_template: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """URLs of a fresh PostgreSQL database and a fresh S3 prefix, for `open_core` or a real server."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return {
        "database_url": postgres.create_database(postgres_template),
        "storage_url": f"s3://{BUCKET}/test-{next(_prefixes)}",
    }


@pytest.fixture(params=["embedded", "cluster"])
async def each_core(request: pytest.FixtureRequest, tmp_path: Path, clock: MovableClock) -> AsyncIterator[Core]:
    """A core of each kind in turn: what holds for one must hold for the other."""
    kind: Kind = request.param
    settings = request.getfixturevalue("cluster_settings") if kind == "cluster" else {}
    async with open_core(tmp_path / "home", clock, **settings) as made:
        yield made
