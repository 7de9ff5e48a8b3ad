"""Owns the tables of files of projects, uploads in parts, and captured answers.

It must not know how rows are used; SQL lives in each domain's repository.py.
"""

from __future__ import annotations

import time

from sqlalchemy import ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from tunesmith_server.db.tables.base import Base, JsonObject


class CaptureRow(Base):
    """A chat completion that was kept; what was said lies in object storage (captures/content.py)."""

    __tablename__ = "captures"
    __table_args__ = (
        Index("ix_captures_project_position", "project_id", "position", "id"),
        Index("ix_captures_created", "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """The completion's own."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    key_id: Mapped[str]
    model: Mapped[str] = mapped_column(Text)
    """As the client named it."""
    request_id: Mapped[str]
    user_metadata: Mapped[JsonObject]
    finish_reason: Mapped[str]
    prompt_sha256: Mapped[str]
    """Of messages and tools: equal prompts have equal ones."""
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    bytes: Mapped[int]
    """Of the object."""
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]
    """Its object is gone; the row stays for a day, so that a report that comes twice does not bring it back."""


class FileRow(Base):
    """An uploaded dataset or a result file; the bytes lie in object storage under `storage_key`."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_project_position", "project_id", "position", "id"),
        Index("ix_files_project_sha256", "project_id", "sha256"),
        Index("ix_files_storage_key", "storage_key"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    status: Mapped[str]
    rows: Mapped[int | None]
    """Lines with data, for datasets."""
    storage_key: Mapped[str] = mapped_column(Text)
    position: Mapped[int] = mapped_column(default=lambda: time.time_ns() // 1000)
    """Microseconds at which the row was made: the order of lists and nothing else."""
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    deleted_at: Mapped[int | None]


class UploadRow(Base):
    """A file that arrives in parts; once completed it is a FileRow."""

    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_status", "status", "expires_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str]
    mime_type: Mapped[str]
    bytes: Mapped[int]
    """What the finished file must have."""
    status: Mapped[str]
    """pending | completed | cancelled | expired"""
    file_expires_after: Mapped[int | None]
    """Seconds after which the finished file expires."""
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[int]
    expires_at: Mapped[int]


class UploadPartRow(Base):
    """One stored part of an upload."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("ix_upload_parts_upload", "upload_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    bytes: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str] = mapped_column(Text)
    created_at: Mapped[int]
