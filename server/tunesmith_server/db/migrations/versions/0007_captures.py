"""Owns schema change 0007: captures, and which keys have opted in to them.

It must not know the rows of the application: db.tables moves on, a migration stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds an empty table, and a column that no key has set."""
    with op.batch_alter_table("api_keys") as batch:
        # The default stays: servers of the schema before go on making keys beside newer ones.
        batch.add_column(sa.Column("capture", sa.Boolean(), nullable=False, server_default=sa.text("false")))
    op.create_table(
        "captures",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("key_id", sa.String(length=255), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("request_id", sa.String(length=255), nullable=False),
        sa.Column("user_metadata", sa.JSON(), nullable=False),
        sa.Column("finish_reason", sa.String(length=255), nullable=False),
        sa.Column("prompt_sha256", sa.String(length=255), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_captures_project_position", "captures", ["project_id", "position", "id"])
    op.create_index("ix_captures_created", "captures", ["created_at"])


def downgrade() -> None:
    """Takes them away again."""
    op.drop_table("captures")
    with op.batch_alter_table("api_keys") as batch:
        batch.drop_column("capture")
