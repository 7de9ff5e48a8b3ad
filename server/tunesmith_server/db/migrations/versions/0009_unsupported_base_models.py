"""Owns schema change 0009: what users may hear of a base model that cannot be trained.

It must not know the rows of the application: tables.py moves on, a migration stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a column that no base model has set; the next import that fails sets it."""
    with op.batch_alter_table("base_models") as batch:
        batch.add_column(sa.Column("unsupported", sa.Text(), nullable=True))


def downgrade() -> None:
    """Takes it away again."""
    with op.batch_alter_table("base_models") as batch:
        batch.drop_column("unsupported")
