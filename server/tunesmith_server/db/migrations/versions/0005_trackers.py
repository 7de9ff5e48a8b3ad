"""Owns schema change 0005: what experiment trackers are still to hear.

It must not know the rows of the application: db.tables moves on, a migration stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds an empty table."""
    op.create_table(
        "tracked_runs",
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("tracker", sa.String(length=255), nullable=False),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=True),
        sa.Column("complained_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["fine_tunes.id"]),
        sa.PrimaryKeyConstraint("job_id", "tracker"),
    )
    op.create_index("ix_tracked_runs_not_before", "tracked_runs", ["not_before"])


def downgrade() -> None:
    """Takes it away again."""
    op.drop_table("tracked_runs")
