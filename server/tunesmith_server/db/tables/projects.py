"""Owns the tables of projects, their keys, what was used and who changed what.

It must not know how rows are used; SQL lives in each domain's repository.py.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Boolean, Float, ForeignKey, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from tunesmith_server.db.tables.base import Base, JsonObject


class ProjectRow(Base):
    """An isolated tenant; its id is also its part of model names."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    quotas: Mapped[JsonObject] = mapped_column(default=dict)
    """Limits by name (projects/quotas.py); a name absent means the installation's default."""
    created_at: Mapped[int]
    archived_at: Mapped[int | None]


class ApiKeyRow(Base):
    """A key of a project, stored as a keyed hash only."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    """Hex HMAC-SHA-256 of the key under the server's secret."""
    redacted: Mapped[str] = mapped_column(default="")
    """The first and last characters, so that people recognise their key."""
    scopes: Mapped[list[Any]] = mapped_column(default=list)
    """What the key may do (projects/scopes.py)."""
    capture: Mapped[bool] = mapped_column(Boolean, default=False, server_default=text("false"))
    """Whether its chat completions are kept (captures/)."""
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    last_used_at: Mapped[int | None]
    revoked_at: Mapped[int | None]


class UsageRow(Base):
    """What one key used of one model within one hour."""

    __tablename__ = "usage"
    __table_args__ = (Index("ix_usage_project_hour", "project_id", "kind", "hour"),)

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key_id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    """inference | training"""
    hour: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Unix seconds of its start."""
    requests: Mapped[int]
    input_tokens: Mapped[int]
    output_tokens: Mapped[int]
    device_seconds: Mapped[float] = mapped_column(Float)


class AuditRow(Base):
    """Who did what: one line for each call that changed something or was refused for lack of a right."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_position", "position", "id"),
        Index("ix_audit_log_project", "project_id", "position"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str | None]
    key_id: Mapped[str | None]
    action: Mapped[str]
    """file.created, api_key.deleted, … (projects/scopes.py), or the operation itself when it was only refused."""
    target_id: Mapped[str | None] = mapped_column(Text)
    outcome: Mapped[str]
    """ok, or the error's code."""
    request_id: Mapped[str]
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]
