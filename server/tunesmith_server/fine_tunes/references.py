"""Owns what a create call refers to: its project's quotas, the model to start from and its files.

It must not know what is allowed; policy.py decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import BaseModelRow, FileRow, FineTuneRow, ModelRow, ProjectRow, RevisionRow
from tunesmith_server.fine_tunes.schemas import CreateFineTune
from tunesmith_server.paging import is_id
from tunesmith_server.registry import repository as registry
from tunesmith_server.registry.manifest import ArtifactKind

ADAPTER_SETTINGS = ("lora_rank", "lora_alpha", "lora_targets", "use_rslora")
"""What an adapter has for good: names of `training`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a job starts from: a base model, or a tuned model of the project's on it."""

    base_model_id: str
    model: str | None = None
    """The tuned model's name."""
    revision: str | None = None
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """ADAPTER_SETTINGS of the tuned model, rank and alpha always, the others where set; empty for whole weights."""
    deleted: bool = False
    is_importing: bool = False
    """The base model is on its way still: no run can begin."""

    @property
    def waits_for(self) -> str | None:
        """The base model, where a job has to wait for its import."""
        return self.base_model_id if self.is_importing else None


@dataclass(frozen=True, slots=True)
class References:
    """What was found of it."""

    origin: Origin | None
    """None: there is no such base model, and no such tuned model of this project's."""
    files: Mapping[str, FileRow]
    """By id; files that are deleted, expired or another project's are left out."""
    quotas: Mapping[str, Any]
    """As stored with the project."""


async def find(session: AsyncSession, project_id: str, request: CreateFineTune, now: int) -> References:
    """Reads what the request names; text that cannot be a name or an id of ours is found nowhere.

    Whoever goes on to store a job that starts from a tuned model does so in the same transaction: it holds the
    model's weights until then.
    """
    model = request.model if request.model.isprintable() else ""
    file_ids = [each for each in (request.training_file, request.validation_file) if each is not None and is_id(each)]
    values = {"project_id": project_id, "model": model, "file_ids": file_ids, "now": now}
    rows = (await session.execute(_STATEMENT, values)).all()
    base_model_id, state = (rows[0].base_model_id, rows[0].base_model_state) if rows else (None, None)
    if base_model_id is None and model:
        base = await registry.find_base_model(session, model)  # by an alias
        base_model_id, state = (None, None) if base is None else (base.id, base.state)
    if base_model_id is None:
        origin = await _tuned(session, project_id, model) if model else None
    else:
        origin = Origin(base_model_id, is_importing=state == registry.IMPORTING)
    return References(
        origin=origin,
        files={row.FileRow.id: row.FileRow for row in rows if row.FileRow is not None},
        quotas=rows[0].quotas if rows else {},
    )


async def _tuned(session: AsyncSession, project_id: str, name: str) -> Origin | None:
    """What may be prompted because another project shares it is not found: its weights are not for others."""
    await registry.hold_changes(session)  # so that a checkpoint is not retired before the job that needs it is stored
    query = (
        select(ModelRow, RevisionRow, FineTuneRow.resolved)
        .join(RevisionRow, RevisionRow.id == ModelRow.revision)
        .join(FineTuneRow, FineTuneRow.id == ModelRow.job_id)
        .where(ModelRow.name == name, ModelRow.project_id == project_id)
    )
    found = (await session.execute(query)).first()
    if found is None:
        return None
    model, revision, made_with = found
    return Origin(
        revision.base_model_id,
        model=model.name,
        revision=revision.id,
        adapter=_adapter(made_with or {}) if revision.kind == ArtifactKind.ADAPTER else {},
        deleted=model.deleted_at is not None,
    )


def _adapter(made_with: Mapping[str, Any]) -> dict[str, Any]:
    return {name: made_with[name] for name in ADAPTER_SETTINGS if made_with.get(name)}


_LIVE_FILES = and_(
    FileRow.project_id == ProjectRow.id,
    FileRow.id.in_(bindparam("file_ids", expanding=True)),
    FileRow.deleted_at.is_(None),
    or_(FileRow.expires_at.is_(None), FileRow.expires_at > bindparam("now")),
)
# Built once: to build it takes as long as to run it.
_STATEMENT = (
    select(
        ProjectRow.quotas,
        BaseModelRow.id.label("base_model_id"),
        BaseModelRow.state.label("base_model_state"),
        FileRow,
    )
    .select_from(ProjectRow)
    .outerjoin(BaseModelRow, BaseModelRow.id == bindparam("model"))
    .outerjoin(FileRow, _LIVE_FILES)
    .where(ProjectRow.id == bindparam("project_id"))
)
