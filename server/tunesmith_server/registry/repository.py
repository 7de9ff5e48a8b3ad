"""Owns the registry's SQL: revisions, model names, base models and the order of their changes.

It must not know storage or transports; each function works in the caller's transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from tunesmith_server.db.tables import (
    BaseModelRow,
    CheckpointPermissionRow,
    CheckpointRow,
    CounterRow,
    FineTuneRow,
    ModelRow,
    RevisionRow,
)
from tunesmith_server.registry import claims
from tunesmith_server.registry.catalogue import CatalogueEntry
from tunesmith_server.registry.manifest import ArtifactKind, ManifestFile

READY = "ready"
IMPORTING = "importing"
FAILED = "failed"

_COUNTER = "registry"
_LISTED: tuple[InstrumentedAttribute[Any], ...] = (
    ModelRow.name,
    ModelRow.created_at,
    ModelRow.project_id,
    ModelRow.revision,
)


@dataclass(frozen=True, slots=True)
class Revision:
    """A verified artifact; `id` is the hex SHA-256 of its manifest, files lie under revisions/<id>/<path>."""

    id: str
    kind: ArtifactKind
    base_model_id: str
    base_revision: str
    files: tuple[ManifestFile, ...]


async def find_base_model(session: AsyncSession, name: str) -> BaseModelRow | None:
    """The base model with this alias or id, in any state.

    An alias comes first: it is of the present catalogue, where an id may be of a model that has left it.
    """
    aliased = next((row for row in await list_base_models(session) if name in row.aliases), None)
    return aliased or await session.get(BaseModelRow, name)


async def list_base_models(session: AsyncSession) -> list[BaseModelRow]:
    """Every base model that was ever in the catalogue, by id."""
    return list(await session.scalars(select(BaseModelRow).order_by(BaseModelRow.id)))


async def sync_base_model(session: AsyncSession, entry: CatalogueEntry, now: int) -> BaseModelRow:
    """Makes the row say what the catalogue says; a new or changed source, or a failed import, starts over."""
    row = await session.get(BaseModelRow, entry.id)
    if row is None:
        # Waits for another control plane that adds it at this moment, so that the second look is the last one.
        version = await next_version(session)
        row = await session.get(BaseModelRow, entry.id)
        if row is None:
            row = BaseModelRow(id=entry.id, source=entry.source, aliases=list(entry.aliases), state=IMPORTING)
            row.created_at, row.version = now, version
            session.add(row)
            return row
    if row.source != entry.source or row.state == FAILED:
        row.source, row.state, row.error, row.unsupported = entry.source, IMPORTING, None, None
        row.version = await next_version(session)
    if row.aliases != list(entry.aliases):
        row.aliases = list(entry.aliases)
        row.version = await next_version(session)
    return row


async def drop_aliases(session: AsyncSession, kept: set[str]) -> None:
    """Takes the aliases from base models that left the catalogue; tuned models on them go on working."""
    for row in await list_base_models(session):
        if row.id not in kept and row.aliases:
            row.aliases = []
            row.version = await next_version(session)


async def finish_import(
    session: AsyncSession,
    model_id: str,
    source: str,
    *,
    revision: str,
    files: tuple[ManifestFile, ...],
    context_length: int | None,
) -> None:
    """Records an import that ended well, unless the source was changed while it ran."""
    row = await session.get(BaseModelRow, model_id)
    if row is not None and row.source == source:
        row.state, row.error, row.unsupported, row.revision = READY, None, None, revision
        row.files = [asdict(file) for file in files]
        row.context_length = context_length
        row.version = await next_version(session)


async def fail_import(
    session: AsyncSession, model_id: str, source: str, error: str, unsupported: str | None = None
) -> None:
    """Records why an import failed, unless the source was changed while it ran."""
    row = await session.get(BaseModelRow, model_id)
    if row is not None and row.source == source and row.state != READY:
        row.state, row.error, row.unsupported = FAILED, error, unsupported
        row.version = await next_version(session)


async def record_revision(session: AsyncSession, revision: Revision, now: int) -> None:
    """Inserts the revision unless it is known: the same bytes always have the same row.

    Raises UnavailableError when its bytes were swept after they were promoted.
    """
    await hold_changes(session)  # so that nobody retires what is about to be named
    await claims.end_promotion(session, revision.id)
    values = {
        "id": revision.id,
        "kind": revision.kind.value,
        "base_model_id": revision.base_model_id,
        "base_revision": revision.base_revision,
        "files": [asdict(file) for file in revision.files],
        "created_at": now,
    }
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(RevisionRow).values(values)
    await session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"removed_at": None}))


async def get_revision(session: AsyncSession, revision_id: str) -> RevisionRow | None:
    """The tuned revision, or None."""
    return await session.get(RevisionRow, revision_id)


async def retire_revisions(session: AsyncSession, ids: Collection[str], now: int) -> None:
    """Leaves those of the revisions to the sweep that no job, kept checkpoint or model refers to or starts from."""
    needed: set[str | None] = set()
    for query in (
        select(CheckpointRow.revision).where(CheckpointRow.removed_at.is_(None), CheckpointRow.revision.in_(ids)),
        select(ModelRow.revision).where(ModelRow.deleted_at.is_(None), ModelRow.revision.in_(ids)),
        select(FineTuneRow.revision).where(FineTuneRow.revision.in_(ids)),
        select(FineTuneRow.start_revision).where(
            FineTuneRow.finished_at.is_(None), FineTuneRow.start_revision.in_(ids)
        ),
    ):
        needed |= set(await session.scalars(query))
    unneeded = update(RevisionRow).where(RevisionRow.id.in_(set(ids) - needed))
    await session.execute(unneeded.values(removed_at=now))


async def retired_revisions(session: AsyncSession, ids: Collection[str]) -> set[str]:
    """Those of the ids whose revision nothing refers to any more."""
    query = select(RevisionRow.id).where(RevisionRow.id.in_(ids), RevisionRow.removed_at.is_not(None))
    return set(await session.scalars(query))


async def unknown_revisions(session: AsyncSession, ids: Collection[str]) -> set[str]:
    """Those of the ids that no tuned revision has."""
    return set(ids) - set(await session.scalars(select(RevisionRow.id).where(RevisionRow.id.in_(ids))))


async def publish_model(
    session: AsyncSession,
    *,
    name: str,
    project_id: str,
    job_id: str,
    revision_id: str,
    checkpoint: bool,
    now: int,
) -> None:
    """Makes the name point at the revision; nothing changes when it does already or when it was deleted."""
    row = await session.get(ModelRow, name)
    if row is not None and (row.revision == revision_id or row.deleted_at is not None):
        return
    version = await next_version(session)
    if row is None:
        row = ModelRow(name=name, project_id=project_id, job_id=job_id, created_at=now)
        session.add(row)
    row.revision, row.checkpoint, row.version = revision_id, checkpoint, version
    await session.flush()


async def get_model(session: AsyncSession, project_id: str, name: str) -> ModelRow | None:
    """A tuned model that the project may prompt and that is not deleted, or None."""
    query = select(ModelRow).where(ModelRow.name == name, ModelRow.deleted_at.is_(None), _may_prompt(project_id))
    return await session.scalar(query)


async def revision_of(session: AsyncSession, project_id: str, name: str) -> str | None:
    """What a tuned or base model's name points at for the project; None when it may not be prompted."""
    if "\0" in name:
        return None
    tuned = await get_model(session, project_id, name)
    if tuned is not None:
        return tuned.revision
    base = await find_base_model(session, name)
    return base.revision if base is not None and base.state == READY else None


async def list_models(session: AsyncSession, project_id: str) -> Sequence[Row[Any]]:
    """The tuned models that the project may prompt and that are not deleted, in few columns, newest first."""
    query = select(*_LISTED).where(_may_prompt(project_id), ModelRow.deleted_at.is_(None))
    return (await session.execute(query.order_by(ModelRow.created_at.desc(), ModelRow.name))).all()


async def touch_model(session: AsyncSession, name: str) -> None:
    """Has gateways told of the name again, because others may use it now, or no longer."""
    version = await next_version(session)
    await session.execute(update(ModelRow).where(ModelRow.name == name).values(version=version))


async def delete_model(session: AsyncSession, project_id: str, name: str, now: int) -> bool:
    """Leaves a tombstone under the name, so that it is never given again; False when there is no such model."""
    statement = update(ModelRow).where(
        ModelRow.name == name, ModelRow.project_id == project_id, ModelRow.deleted_at.is_(None)
    )
    version = await next_version(session)
    result = await session.execute(statement.values(deleted_at=now, version=version).returning(ModelRow.name))
    return result.first() is not None


async def retire_model(session: AsyncSession, name: str, now: int) -> None:
    """Leaves a tombstone under the name of a checkpoint that is not kept any more."""
    version = await next_version(session)
    statement = update(ModelRow).where(ModelRow.name == name, ModelRow.deleted_at.is_(None))
    await session.execute(statement.values(deleted_at=now, version=version))


async def revive_model(session: AsyncSession, name: str, retired_at: int) -> None:
    """Takes away the tombstone that `retire_model` left at this time; one that a user left stays."""
    version = await next_version(session)
    statement = update(ModelRow).where(ModelRow.name == name, ModelRow.deleted_at == retired_at)
    await session.execute(statement.values(deleted_at=None, version=version))


async def current_version(session: AsyncSession) -> int:
    """The number of the newest committed change; 0 before the first."""
    return await session.scalar(select(CounterRow.value).where(CounterRow.name == _COUNTER)) or 0


async def changed_models(session: AsyncSession, after: int, upto: int) -> list[tuple[ModelRow, RevisionRow]]:
    """Tuned models whose last change has a number in (after, upto], oldest change first, with their revisions."""
    query = (
        select(ModelRow, RevisionRow)
        .join(RevisionRow, ModelRow.revision == RevisionRow.id)
        .where(ModelRow.version > after, ModelRow.version <= upto)
        .order_by(ModelRow.version)
    )
    return [(model, revision) for model, revision in await session.execute(query)]


async def shared_with(session: AsyncSession, after: int, upto: int) -> dict[str, tuple[str, ...]]:
    """The projects that may prompt another project's models, for names whose last change is in (after, upto]."""
    query = (
        select(ModelRow.name, CheckpointPermissionRow.project_id)
        .join(CheckpointRow, and_(CheckpointRow.job_id == ModelRow.job_id, CheckpointRow.model_name == ModelRow.name))
        .join(CheckpointPermissionRow, CheckpointPermissionRow.checkpoint_id == CheckpointRow.id)
        .where(ModelRow.version > after, ModelRow.version <= upto)
        .order_by(CheckpointPermissionRow.project_id)
    )
    projects: defaultdict[str, list[str]] = defaultdict(list)
    for name, project_id in await session.execute(query):
        projects[name].append(project_id)
    return {name: tuple(found) for name, found in projects.items()}


async def changed_base_models(session: AsyncSession, after: int, upto: int) -> list[BaseModelRow]:
    """Base models whose last change has a number in (after, upto], oldest change first."""
    query = select(BaseModelRow).where(BaseModelRow.version > after, BaseModelRow.version <= upto)
    return list(await session.scalars(query.order_by(BaseModelRow.version)))


async def next_version(session: AsyncSession) -> int:
    """Takes the next number; its row stays locked until the commit, so numbers become visible in their order."""
    statement = update(CounterRow).where(CounterRow.name == _COUNTER).values(value=CounterRow.value + 1)
    value = await session.scalar(statement.returning(CounterRow.value))
    if value is not None:
        return int(value)
    try:
        async with session.begin_nested():
            session.add(CounterRow(name=_COUNTER, value=1))
    except IntegrityError:  # another process made the first change at this moment
        return await next_version(session)
    return 1


async def hold_changes(session: AsyncSession) -> None:
    """Has everybody else who names, shares or retires something wait until the transaction ends."""
    held = update(CounterRow).where(CounterRow.name == _COUNTER)
    await session.execute(held.values(value=CounterRow.value))


def _may_prompt(project_id: str) -> ColumnElement[bool]:
    """The project's own models, and checkpoints of others that were shared with it."""
    shared = (
        select(CheckpointRow.model_name)
        .join(CheckpointPermissionRow, CheckpointPermissionRow.checkpoint_id == CheckpointRow.id)
        .where(CheckpointPermissionRow.project_id == project_id)
    )
    return or_(ModelRow.project_id == project_id, ModelRow.name.in_(shared))
