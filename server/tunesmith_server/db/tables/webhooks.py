"""Owns the tables of webhook endpoints, the outbox and its deliveries.

It must not know how rows are used; SQL lives in each domain's repository.py.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Float, ForeignKey, Index, Integer, Text
from sqlalchemy.orm import Mapped, mapped_column

from tunesmith_server.db.tables.base import Base


class WebhookEndpointRow(Base):
    """A URL of the user's that wants to hear of events; its signing secret is derived from the server's."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("ix_webhook_endpoints_project", "project_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[Any]]
    secret_version: Mapped[int] = mapped_column(Integer, default=1)
    """Which of its secrets signs; a rotation counts it up."""
    old_secret_until: Mapped[int | None]
    """Until when the secret before signs as well."""
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]
    updated_at: Mapped[int]
    deleted_at: Mapped[int | None]


class OutboxRow(Base):
    """Something that the outside must hear of, written in the transaction in which it became true."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_fanned_out", "fanned_out_at", "position"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    type: Mapped[str]
    """fine_tuning.job.succeeded | …"""
    subject_id: Mapped[str]
    """The job."""
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]
    fanned_out_at: Mapped[int | None]
    """When its deliveries were written."""


class WebhookDeliveryRow(Base):
    """One message to one endpoint, tried until it is taken or given up."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_due", "state", "not_before"),
        Index("ix_webhook_deliveries_once", "outbox_id", "endpoint_id", unique=True),
        Index("ix_webhook_deliveries_endpoint", "endpoint_id", "position"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    outbox_id: Mapped[str] = mapped_column(ForeignKey("outbox.id"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    state: Mapped[str]
    """pending | sending | delivered | given_up"""
    attempts: Mapped[int] = mapped_column(Integer)
    not_before: Mapped[float] = mapped_column(Float)
    """When it is due; of one that is being sent, when its sender counts as gone."""
    last_status: Mapped[int | None] = mapped_column(Integer)
    last_error: Mapped[str | None] = mapped_column(Text)
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]
    finished_at: Mapped[int | None]
