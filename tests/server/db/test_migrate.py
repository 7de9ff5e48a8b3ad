"""Migrations lead to exactly the tables of tables.py, on both databases, also when servers start together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from tests.support.postgres import PostgresServer
from tunesmith_server.db.migrate import upgrade
from tunesmith_server.db.session import sync_url
from tunesmith_server.db.tables import Base


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


def test_servers_that_start_together_migrate_once(url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(upgrade, [url] * 3))
    engine = engine_of(url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    engine.dispose()


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
        connection.execute(text("INSERT INTO projects (id, created_at) VALUES ('default', 1)"))
    upgrade(url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT id FROM projects")).scalars().all() == ["default"]
    engine.dispose()
