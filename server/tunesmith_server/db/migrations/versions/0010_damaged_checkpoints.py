"""Owns schema change 0010: which checkpoints were found damaged.

It must not know the rows of the application: tables.py moves on, a migration stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a column that no checkpoint has set; the next run that cannot resume from one sets it."""
    with op.batch_alter_table("checkpoints") as batch:
        batch.add_column(sa.Column("damaged_at", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Takes it away again."""
    with op.batch_alter_table("checkpoints") as batch:
        batch.drop_column("damaged_at")
