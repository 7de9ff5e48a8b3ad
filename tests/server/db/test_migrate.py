"""Migrations lead to exactly the tables of tables.py, on both databases, also when servers start together."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Engine,
    Float,
    Integer,
    MetaData,
    Table,
    create_engine,
    inspect,
    select,
    text,
)
from sqlalchemy.orm import Session

from tests.support.postgres import PostgresServer
from tunesmith_server.db import guards, migrate
from tunesmith_server.db.migrate import NewerSchemaError, _config, _locked_connection, upgrade
from tunesmith_server.db.session import sync_url
from tunesmith_server.db.tables import ApiKeyRow, AttemptRow, Base, FineTuneRow

VERSIONS = Path(migrate.__file__).with_name("migrations") / "versions"
RELEASED = sorted(path.name[:4] for path in VERSIONS.glob("[0-9]*.py"))[1:]
"""Schemas whose servers may run beside newer ones: all but the first, which nobody had."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database()


def engine_of(url: str) -> Engine:
    return create_engine(sync_url(url))


def test_the_result_equals_the_declared_tables(url: str) -> None:
    upgrade(url)
    engine = engine_of(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, Base.metadata)
    engine.dispose()
    assert differences == [], "tables.py changed: draft a migration (server/README.md)"


def test_a_database_is_new_until_its_tables_are_made(url: str) -> None:
    assert migrate.is_new(url)
    upgrade(url)
    assert not migrate.is_new(url)


def test_the_result_has_the_declared_triggers(url: str) -> None:
    upgrade(url)
    engine = engine_of(url)
    migrated = triggers(engine)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    declared = triggers(engine)
    engine.dispose()
    assert guards.TRIGGER in migrated
    assert migrated == declared, "db/guards.py and the migrations differ; a table that SQLite copied lost its triggers"


def triggers(engine: Engine) -> dict[str, str]:
    """What the database runs by itself, by name."""
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    if engine.dialect.name == "postgresql":
        query = (
            "SELECT tgname, pg_get_triggerdef(pg_trigger.oid) || pg_get_functiondef(tgfoid) "
            "FROM pg_trigger WHERE NOT tgisinternal"
        )
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(text(query))}


def test_servers_that_start_together_migrate_once(url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(upgrade, [url] * 3))
    engine = engine_of(url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    engine.dispose()


def test_a_session_opens_while_another_process_migrates(tmp_path: Path) -> None:
    """As `keys create` beside the very first `up`: going over to the write-ahead log waits for no writer."""
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    upgrade(url)
    with _locked_connection(url), closing(sqlite3.connect(tmp_path / "empty.db")) as session:
        assert session.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)


def test_a_migration_that_breaks_off_leaves_nothing(url: str) -> None:
    engine = engine_of(url)
    with engine.begin() as connection:
        # In the way of the migration's own table of this name.
        connection.execute(text("CREATE TABLE step_metrics (in_the_way INTEGER)"))
    with pytest.raises(Exception, match="step_metrics"):
        upgrade(url)
    assert inspect(engine).get_table_names() == ["step_metrics"]
    engine.dispose()


def test_data_survives_a_second_upgrade(url: str) -> None:
    upgrade(url)
    engine = engine_of(url)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO projects (id, name, quotas, created_at) VALUES ('default', '', '{}', 1)"))
    upgrade(url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM projects")).scalars().all() == ["default"]
    engine.dispose()


def test_rows_of_the_first_schema_get_defaults(url: str) -> None:
    with _locked_connection(url) as connection:
        command.upgrade(_config(connection), "0001")
        connection.execute(text("INSERT INTO projects (id, created_at) VALUES ('default', 1)"))
        connection.execute(
            text("INSERT INTO api_keys (id, project_id, name, hash, created_at) VALUES ('k', 'default', '', 'h', 1)")
        )
    upgrade(url)
    engine = engine_of(url)
    with Session(engine) as session:
        key = session.scalars(select(ApiKeyRow)).one()
        assert (key.scopes, key.expires_at) == (["*"], None)
    engine.dispose()


def test_all_that_the_first_schema_held_is_kept(url: str) -> None:
    with _locked_connection(url) as connection:
        command.upgrade(_config(connection), "0001")
        first = MetaData()
        first.reflect(connection)
        rows = {table.name: row_of(table) for table in first.sorted_tables if table.name != "alembic_version"}
        for name, row in rows.items():
            connection.execute(first.tables[name].insert().values(row))
    upgrade(url)
    engine = engine_of(url)
    with engine.connect() as connection:
        for name, row in rows.items():
            table = first.tables[name]
            kept = connection.execute(select(*table.columns)).mappings().one()
            assert dict(kept) == row, name
        if engine.dialect.name == "sqlite":
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
    with Session(engine) as session:
        for mapper in Base.registry.mappers:
            session.scalars(select(mapper.class_)).all()
        job = session.scalars(select(FineTuneRow)).one()
        assert (job.kind, job.auto_start, job.preempt_requested, job.devices) == ("job", True, False, 1)
    engine.dispose()


def test_attempts_from_before_their_starts_were_known_go_on_counting(url: str) -> None:
    with _locked_connection(url) as connection:
        command.upgrade(_config(connection), "0010")
        older = MetaData()
        older.reflect(connection)
        older.remove(older.tables["alembic_version"])
        for table in older.sorted_tables:
            connection.execute(table.insert().values(row_of(table)))
    upgrade(url)
    engine = engine_of(url)
    with Session(engine) as session:
        attempt = session.scalars(select(AttemptRow)).one()
        assert attempt.started_at == attempt.created_at
    with _locked_connection(url) as connection:
        command.downgrade(_config(connection), "0010")
    with engine.connect() as connection:
        assert "started_at" not in {column["name"] for column in inspect(connection).get_columns("attempts")}
        assert connection.execute(text("SELECT count(*) FROM attempts")).scalar() == 1
    engine.dispose()


@pytest.mark.parametrize("schema", RELEASED[:-1])
def test_servers_of_an_older_schema_go_on_beside_a_newer_one(url: str, schema: str) -> None:
    with _locked_connection(url) as connection:
        command.upgrade(_config(connection), schema)
        older = MetaData()
        older.reflect(connection)
    older.remove(older.tables["alembic_version"])
    upgrade(url)
    engine = engine_of(url)
    with engine.begin() as connection:
        # Every column that they know is still there and takes what they write; those that came since fill themselves.
        for table in older.sorted_tables:
            connection.execute(table.insert().values(row_of(table)))
            assert dict(connection.execute(select(*table.columns)).mappings().one()) == row_of(table), table.name
    with Session(engine) as session:
        for mapper in Base.registry.mappers:
            session.scalars(select(mapper.class_)).all()
    engine.dispose()


def test_a_server_that_is_older_than_the_database_says_so(url: str) -> None:
    upgrade(url)
    engine = engine_of(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NewerSchemaError, match=rf"schema 9999; this one knows {RELEASED[-1]}\."):
        upgrade(url)
    engine.dispose()


def row_of(table: Table) -> dict[str, object]:
    """A row with a value in every column, that names the rows of other tables made so."""
    return {column.name: value_of(column) for column in table.columns}


def value_of(column: Column[object]) -> object:
    for key in column.foreign_keys:
        return value_of(key.column)
    kind = column.type
    if isinstance(kind, JSON):
        return {"some": ["thing"]}
    if isinstance(kind, Boolean):
        return False
    if isinstance(kind, Float):
        return 1.5
    return 7 if isinstance(kind, Integer) else f"{column.table.name}.{column.name}"
