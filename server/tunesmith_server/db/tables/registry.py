"""Owns the tables of base models, revisions, the names that point at them and the gateways that serve them.

It must not know how rows are used; SQL lives in each domain's repository.py.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Float, ForeignKey, ForeignKeyConstraint, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from tunesmith_server.db.tables.base import Base, JsonObject


class BaseModelRow(Base):
    """A catalogue entry and what became of its import."""

    __tablename__ = "base_models"

    id: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    aliases: Mapped[list[Any]]
    state: Mapped[str]
    """importing | ready | failed"""
    revision: Mapped[str | None]
    files: Mapped[list[Any] | None]
    """[{path, size, sha256}] of the manifest."""
    context_length: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    """Why its import failed, for the operator."""
    unsupported: Mapped[str | None] = mapped_column(Text)
    """The same for users, where it is the model's architecture that cannot be trained."""
    created_at: Mapped[int]
    version: Mapped[int]
    """Place in the order of changes that gateways follow."""


class RevisionRow(Base):
    """A verified artifact; its id is the SHA-256 of its manifest. Its bytes never change."""

    __tablename__ = "revisions"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    """adapter | full"""
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    base_revision: Mapped[str]
    files: Mapped[list[Any]]
    """[{path, size, sha256}]; stored under revisions/<id>/<path>."""
    created_at: Mapped[int]
    removed_at: Mapped[int | None]
    """Since when nothing refers to it: its bytes may be gone, until the same ones are promoted again."""


class ModelRow(Base):
    """A model name: an alias that points at a revision."""

    __tablename__ = "models"
    __table_args__ = (Index("ix_models_project", "project_id"), Index("ix_models_version", "version"))

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tunes.id"))
    revision: Mapped[str] = mapped_column(ForeignKey("revisions.id"))
    checkpoint: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]
    version: Mapped[int]
    """Place in the order of changes that gateways follow."""


class GatewayRow(Base):
    """What a gateway said last of its engines and itself; gone some time after it has fallen silent."""

    __tablename__ = "gateways"

    id: Mapped[str] = mapped_column(primary_key=True)
    """New with each of its starts."""
    replicas: Mapped[list[Any]]
    """What its engines hold (registry/replicas.py)."""
    presence: Mapped[JsonObject | None]
    """What other gateways are to know of it; NULL where none reaches it."""
    heard_at: Mapped[float] = mapped_column(Float)


class DeploymentRow(Base):
    """A name of a project's own that stands for one or several models, by weight."""

    __tablename__ = "deployments"
    __table_args__ = (Index("ix_deployments_version", "version"),)

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]
    """Its newest version."""
    targets: Mapped[list[Any]]
    """[{model, weight}]."""
    pinned: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[int]
    updated_at: Mapped[int]
    deleted_at: Mapped[int | None]
    version: Mapped[int]
    """Place in the order of changes that gateways follow."""


class DeploymentVersionRow(Base):
    """What a deployment stood for, from one change of its targets to the next."""

    __tablename__ = "deployment_versions"
    __table_args__ = (ForeignKeyConstraint(["project_id", "name"], ["deployments.project_id", "deployments.name"]),)

    project_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    targets: Mapped[list[Any]]
    created_at: Mapped[int]
