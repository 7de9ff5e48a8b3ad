"""Owns schema change 0011: since when each attempt has been known to run.

It must not know the rows of the application: tables.py moves on, a migration stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a column; attempts that are there go on counting from when they were made."""
    with op.batch_alter_table("attempts") as batch:
        batch.add_column(sa.Column("started_at", sa.BigInteger(), nullable=True))
    op.execute("UPDATE attempts SET started_at = created_at")


def downgrade() -> None:
    """Takes it away again."""
    with op.batch_alter_table("attempts") as batch:
        batch.drop_column("started_at")
