"""Owns how Alembic runs a migration: on the connection that migrate.py hands over.

It must not know where the database is.
"""

from __future__ import annotations

from alembic import context

from tunesmith_server.db.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite changes a table only by copying it.
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
