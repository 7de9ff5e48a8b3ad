"""Owns schema change 0004: the tuned model that a job goes on from.

It must not know the rows of the application: db.tables moves on, a migration stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds columns that are empty for the rows that are there."""
    op.add_column("fine_tunes", sa.Column("start_model", sa.Text(), nullable=True))
    op.add_column("fine_tunes", sa.Column("start_revision", sa.String(length=255), nullable=True))


def downgrade() -> None:
    """Takes them away again."""
    for column in ("start_model", "start_revision"):
        op.drop_column("fine_tunes", column)
