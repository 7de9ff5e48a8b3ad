"""Owns what a create call refers to: its project's quotas, its base model and its files, read in one statement.

It must not know what is allowed; policy.py decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import BaseModelRow, FileRow, ProjectRow
from tunesmith_server.fine_tunes.schemas import CreateFineTune
from tunesmith_server.paging import is_id
from tunesmith_server.registry import repository as registry


@dataclass(frozen=True, slots=True)
class References:
    """What was found of it."""

    base_model_id: str | None
    """None: there is no base model of the name that was asked for."""
    files: Mapping[str, FileRow]
    """By id; files that are deleted, expired or another project's are left out."""
    quotas: Mapping[str, Any]
    """As stored with the project."""


async def find(session: AsyncSession, project_id: str, request: CreateFineTune, now: int) -> References:
    """Reads what the request names; text that cannot be a name or an id of ours is found nowhere."""
    model = request.model if request.model.isprintable() else ""
    file_ids = [each for each in (request.training_file, request.validation_file) if each is not None and is_id(each)]
    values = {"project_id": project_id, "model": model, "file_ids": file_ids, "now": now}
    rows = (await session.execute(_STATEMENT, values)).all()
    base_model_id = rows[0].base_model_id if rows else None
    if base_model_id is None and model:
        base = await registry.find_base_model(session, model)  # by an alias
        base_model_id = None if base is None else base.id
    return References(
        base_model_id=base_model_id,
        files={row.FileRow.id: row.FileRow for row in rows if row.FileRow is not None},
        quotas=rows[0].quotas if rows else {},
    )


_BASE_MODEL_ID = select(BaseModelRow.id).where(BaseModelRow.id == bindparam("model")).scalar_subquery()
_LIVE_FILES = and_(
    FileRow.project_id == ProjectRow.id,
    FileRow.id.in_(bindparam("file_ids", expanding=True)),
    FileRow.deleted_at.is_(None),
    or_(FileRow.expires_at.is_(None), FileRow.expires_at > bindparam("now")),
)
# Built once: to build it takes as long as to run it.
_STATEMENT = (
    select(ProjectRow.quotas, _BASE_MODEL_ID.label("base_model_id"), FileRow)
    .outerjoin(FileRow, _LIVE_FILES)
    .where(ProjectRow.id == bindparam("project_id"))
)
