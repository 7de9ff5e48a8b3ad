"""Owns schema change 0002: what the whole control plane needs beside jobs.

It must not know the rows of the application: db.tables moves on, a migration stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds tables and columns; rows that are there get a default, later ones bring a value."""
    op.create_table(
        "audit_log",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=True),
        sa.Column("key_id", sa.String(length=255), nullable=True),
        sa.Column("action", sa.String(length=255), nullable=False),
        sa.Column("target_id", sa.Text(), nullable=True),
        sa.Column("outcome", sa.String(length=255), nullable=False),
        sa.Column("request_id", sa.String(length=255), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("audit_log", schema=None) as batch_op:
        batch_op.create_index("ix_audit_log_position", ["position", "id"], unique=False)
        batch_op.create_index("ix_audit_log_project", ["project_id", "position"], unique=False)

    op.create_table(
        "outbox",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("subject_id", sa.String(length=255), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("fanned_out_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.create_index("ix_outbox_fanned_out", ["fanned_out_at", "position"], unique=False)

    op.create_table(
        "usage",
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("key_id", sa.String(length=255), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=255), nullable=False),
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("device_seconds", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.PrimaryKeyConstraint("project_id", "key_id", "model", "kind", "hour"),
    )
    with op.batch_alter_table("usage", schema=None) as batch_op:
        batch_op.create_index("ix_usage_project_hour", ["project_id", "kind", "hour"], unique=False)

    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("secret_version", sa.Integer(), nullable=False),
        sa.Column("old_secret_until", sa.BigInteger(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("webhook_endpoints", schema=None) as batch_op:
        batch_op.create_index("ix_webhook_endpoints_project", ["project_id"], unique=False)

    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.String(length=255), nullable=False),
        sa.Column("mime_type", sa.String(length=255), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=255), nullable=False),
        sa.Column("file_expires_after", sa.BigInteger(), nullable=True),
        sa.Column("file_id", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_id"],
            ["files.id"],
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.create_index("ix_uploads_status", ["status", "expires_at"], unique=False)

    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("outbox_id", sa.String(length=255), nullable=False),
        sa.Column("endpoint_id", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=255), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
        ),
        sa.ForeignKeyConstraint(
            ["outbox_id"],
            ["outbox.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("webhook_deliveries", schema=None) as batch_op:
        batch_op.create_index("ix_webhook_deliveries_due", ["state", "not_before"], unique=False)
        batch_op.create_index("ix_webhook_deliveries_endpoint", ["endpoint_id", "position"], unique=False)
        batch_op.create_index("ix_webhook_deliveries_once", ["outbox_id", "endpoint_id"], unique=True)

    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("upload_id", sa.String(length=255), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=255), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"],
            ["uploads.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("upload_parts", schema=None) as batch_op:
        batch_op.create_index("ix_upload_parts_upload", ["upload_id"], unique=False)

    op.create_table(
        "checkpoint_permissions",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("checkpoint_id", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.id"],
        ),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("checkpoint_permissions", schema=None) as batch_op:
        batch_op.create_index("ix_checkpoint_permissions_checkpoint", ["checkpoint_id", "project_id"], unique=True)

    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("redacted", sa.String(length=255), nullable=False, server_default=sa.text("''")))
        batch_op.add_column(
            sa.Column("scopes", sa.JSON(none_as_null=True), nullable=False, server_default=sa.text("'[\"*\"]'"))
        )
        batch_op.add_column(sa.Column("expires_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("last_used_at", sa.BigInteger(), nullable=True))

    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("device_ids", sa.JSON(none_as_null=True), nullable=False, server_default=sa.text("'[]'"))
        )

    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.add_column(sa.Column("expires_at", sa.BigInteger(), nullable=True))
        batch_op.create_index("ix_files_storage_key", ["storage_key"], unique=False)

    with op.batch_alter_table("fine_tunes", schema=None) as batch_op:
        batch_op.add_column(sa.Column("kind", sa.String(length=255), nullable=False, server_default=sa.text("'job'")))
        batch_op.add_column(
            sa.Column("preempt_requested", sa.Boolean(), nullable=False, server_default=sa.text("false"))
        )
        batch_op.add_column(sa.Column("auto_start", sa.Boolean(), nullable=False, server_default=sa.text("true")))
        batch_op.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default=sa.text("0")))
        batch_op.add_column(sa.Column("devices", sa.Integer(), nullable=False, server_default=sa.text("1")))
        batch_op.add_column(sa.Column("max_run_seconds", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("max_device_seconds", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("run_seconds", sa.Float(), nullable=False, server_default=sa.text("0")))
        batch_op.add_column(sa.Column("device_seconds", sa.Float(), nullable=False, server_default=sa.text("0")))
        batch_op.add_column(sa.Column("body_hash", sa.String(length=255), nullable=False, server_default=sa.text("''")))
        batch_op.add_column(sa.Column("key_id", sa.String(length=255), nullable=True))
        batch_op.add_column(sa.Column("report", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("rejects_file_id", sa.String(length=255), nullable=True))
        batch_op.create_index("ix_fine_tunes_body_hash", ["project_id", "body_hash", "created_at"], unique=False)
        batch_op.create_index("ix_fine_tunes_project_state", ["project_id", "state", "base_model_id"], unique=False)

    with op.batch_alter_table("projects", schema=None) as batch_op:
        batch_op.add_column(sa.Column("name", sa.String(length=255), nullable=False, server_default=sa.text("''")))
        batch_op.add_column(
            sa.Column("quotas", sa.JSON(none_as_null=True), nullable=False, server_default=sa.text("'{}'"))
        )
        batch_op.add_column(sa.Column("archived_at", sa.BigInteger(), nullable=True))

    _drop_defaults("api_keys", "redacted", "scopes")
    _drop_defaults("attempts", "device_ids")
    _drop_defaults(
        "fine_tunes",
        "kind",
        "preempt_requested",
        "auto_start",
        "priority",
        "devices",
        "run_seconds",
        "device_seconds",
        "body_hash",
    )
    _drop_defaults("projects", "name", "quotas")
    # Last: SQLite changes a table by copying it, and a copy has no triggers.
    _keep_ended_jobs()


def downgrade() -> None:
    """Takes it back."""
    _let_ended_jobs_change()
    with op.batch_alter_table("projects", schema=None) as batch_op:
        batch_op.drop_column("archived_at")
        batch_op.drop_column("quotas")
        batch_op.drop_column("name")

    with op.batch_alter_table("fine_tunes", schema=None) as batch_op:
        batch_op.drop_index("ix_fine_tunes_project_state")
        batch_op.drop_index("ix_fine_tunes_body_hash")
        batch_op.drop_column("rejects_file_id")
        batch_op.drop_column("report")
        batch_op.drop_column("key_id")
        batch_op.drop_column("body_hash")
        batch_op.drop_column("device_seconds")
        batch_op.drop_column("run_seconds")
        batch_op.drop_column("max_device_seconds")
        batch_op.drop_column("max_run_seconds")
        batch_op.drop_column("devices")
        batch_op.drop_column("priority")
        batch_op.drop_column("auto_start")
        batch_op.drop_column("preempt_requested")
        batch_op.drop_column("kind")

    with op.batch_alter_table("files", schema=None) as batch_op:
        batch_op.drop_index("ix_files_storage_key")
        batch_op.drop_column("expires_at")

    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.drop_column("device_ids")

    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.drop_column("last_used_at")
        batch_op.drop_column("expires_at")
        batch_op.drop_column("scopes")
        batch_op.drop_column("redacted")

    with op.batch_alter_table("checkpoint_permissions", schema=None) as batch_op:
        batch_op.drop_index("ix_checkpoint_permissions_checkpoint")

    op.drop_table("checkpoint_permissions")
    with op.batch_alter_table("upload_parts", schema=None) as batch_op:
        batch_op.drop_index("ix_upload_parts_upload")

    op.drop_table("upload_parts")
    with op.batch_alter_table("webhook_deliveries", schema=None) as batch_op:
        batch_op.drop_index("ix_webhook_deliveries_once")
        batch_op.drop_index("ix_webhook_deliveries_endpoint")
        batch_op.drop_index("ix_webhook_deliveries_due")

    op.drop_table("webhook_deliveries")
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.drop_index("ix_uploads_status")

    op.drop_table("uploads")
    with op.batch_alter_table("webhook_endpoints", schema=None) as batch_op:
        batch_op.drop_index("ix_webhook_endpoints_project")

    op.drop_table("webhook_endpoints")
    with op.batch_alter_table("usage", schema=None) as batch_op:
        batch_op.drop_index("ix_usage_project_hour")

    op.drop_table("usage")
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_index("ix_outbox_fanned_out")

    op.drop_table("outbox")
    with op.batch_alter_table("audit_log", schema=None) as batch_op:
        batch_op.drop_index("ix_audit_log_project")
        batch_op.drop_index("ix_audit_log_position")

    op.drop_table("audit_log")


def _drop_defaults(table: str, *columns: str) -> None:
    with op.batch_alter_table(table, schema=None) as batch_op:
        for column in columns:
            batch_op.alter_column(column, server_default=None)


def _keep_ended_jobs() -> None:
    columns = (
        "state",
        "lease_token",
        "epoch",
        "fine_tuned_model",
        "revision",
        "evaluation",
        "result_file_ids",
        "trained_tokens",
        "error_code",
        "error_message",
        "error_param",
        "finished_at",
    )
    ended = "OLD.state IN ('succeeded', 'failed', 'cancelled')"
    if op.get_bind().dialect.name == "sqlite":
        changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in columns)
        op.execute(
            "CREATE TRIGGER fine_tunes_keep_ended BEFORE UPDATE ON fine_tunes FOR EACH ROW "
            f"WHEN {ended} AND ({changed}) "
            "BEGIN SELECT RAISE(ABORT, 'an ended job never changes'); END"
        )
        return
    changed = " OR ".join(f"NEW.{column}::text IS DISTINCT FROM OLD.{column}::text" for column in columns)
    op.execute(
        "CREATE OR REPLACE FUNCTION fine_tunes_keep_ended() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'an ended job never changes' USING ERRCODE = 'restrict_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER fine_tunes_keep_ended BEFORE UPDATE ON fine_tunes FOR EACH ROW "
        f"WHEN ({ended} AND ({changed})) EXECUTE FUNCTION fine_tunes_keep_ended()"
    )


def _let_ended_jobs_change() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER fine_tunes_keep_ended")
        return
    op.execute("DROP TRIGGER fine_tunes_keep_ended ON fine_tunes")
    op.execute("DROP FUNCTION fine_tunes_keep_ended()")
