"""Owns schema change 0008: what gateways say of their engines, where every control plane reads it.

It must not know the rows of the application: tables.py moves on, a migration stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds an empty table: gateways say it all again within seconds."""
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("replicas", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("presence", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("heard_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    """Takes it away again."""
    op.drop_table("gateways")
