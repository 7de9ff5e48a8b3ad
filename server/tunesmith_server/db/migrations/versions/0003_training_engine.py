"""Owns schema change 0003: what the training engine's results need.

It must not know the rows of the application: db.tables moves on, a migration stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds columns that are empty for the rows that are there."""
    for table in ("checkpoints", "revisions"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("removed_at", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Takes them away again."""
    for table in ("checkpoints", "revisions"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column("removed_at")
