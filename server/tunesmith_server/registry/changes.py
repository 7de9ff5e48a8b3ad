"""Owns the feed of what may be served: everything first, then each change, in the order in which it was committed.

It must not know transports. The database is the truth, so that changes of other control planes are seen too;
the wake-up within this process only makes its own ones arrive at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field

from tunesmith_server.db.session import Database
from tunesmith_server.db.tables import BaseModelRow, DeploymentRow, ModelRow, RevisionRow
from tunesmith_server.deployments import repository as deployments
from tunesmith_server.registry import repository

POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Servable:
    """A name that clients may send, and what it stands for. Without `project_id` every project may use it."""

    name: str
    project_id: str | None
    kind: str
    """base | adapter | full"""
    revision: str
    base_model_id: str
    base_revision: str
    created: int
    checkpoint: bool
    shared_with: tuple[str, ...] = ()
    """Other projects that may use it."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """A name that no longer stands for anything."""

    name: str


@dataclass(frozen=True, slots=True)
class Deployed:
    """A project's own name, and the models (with their weights) that it stands for in this version."""

    project_id: str
    name: str
    version: int
    targets: tuple[tuple[str, int], ...]
    pinned: bool


@dataclass(frozen=True, slots=True)
class Undeployed:
    """A project's own name that no longer stands for anything."""

    project_id: str
    name: str


@dataclass(frozen=True, slots=True)
class SnapshotComplete:
    """Everything that existed when the feed began has been sent."""


Change = Servable | Deleted | Deployed | Undeployed | SnapshotComplete


@dataclass(slots=True)
class _Seen:
    """What one follower has been told."""

    version: int = 0
    base_names: dict[str, set[str]] = field(default_factory=dict)
    """Names of base models that can be served, by id."""
    importing: set[str] = field(default_factory=set)

    @property
    def is_fresh(self) -> bool:
        """Whether the installation is still importing the first base model that it will serve."""
        return bool(self.importing) and not any(self.base_names.values())


class ChangeFeed:
    """Lets any number of gateways follow the registry."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._news = asyncio.Event()
        self._closed = False

    def announce(self) -> None:
        """Wakes every follower; call it after a commit that changed a model."""
        self._news.set()
        self._news = asyncio.Event()

    def close(self) -> None:
        """Ends every feed, so that a server that stops need not cut them off."""
        self._closed = True
        self.announce()

    async def follow(self) -> AsyncIterator[Change]:
        """All that may be served, SnapshotComplete, then changes for ever (until `close`).

        On a fresh installation the snapshot is complete only when the first base model has been imported or cannot
        be: until then nobody can say that a name does not exist.
        """
        seen = _Seen()
        complete = False
        while not self._closed:
            news = self._news
            for change in await self._read(seen):
                yield change
            if not complete and not seen.is_fresh:
                complete = True
                yield SnapshotComplete()
            try:
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(POLL_SECONDS):
                    await news.wait()
            except TimeoutError:
                continue

    async def _read(self, seen: _Seen) -> list[Change]:
        async with self._database.read() as session:
            # The bound is read first: what is committed later has a higher number and is left for the next round.
            after, upto = seen.version, await repository.current_version(session)
            if upto == after:
                return []
            numbered: list[tuple[int, list[Change]]] = [
                (row.version, list(_base_changes(row, seen)))
                for row in await repository.changed_base_models(session, after, upto)
            ]
            tuned = await repository.changed_models(session, after, upto)
            shared = await repository.shared_with(session, after, upto)
            deployed = await deployments.changed(session, after, upto)
        # A snapshot has no use for what was deleted before it.
        wanted = [(row, revision) for row, revision in tuned if after or row.deleted_at is None]
        numbered += [(row.version, [_tuned_change(row, revision, shared)]) for row, revision in wanted]
        numbered += [(row.version, [_deployment_change(row)]) for row in deployed if after or row.deleted_at is None]
        numbered.sort(key=lambda item: item[0])
        seen.version = upto
        return [change for _, changes in numbered for change in changes]


def _base_changes(row: BaseModelRow, seen: _Seen) -> Iterator[Change]:
    names = {row.id, *row.aliases} if row.state == repository.READY and row.revision else set()
    for name in sorted(seen.base_names.get(row.id, set()) - names):
        yield Deleted(name)
    seen.base_names[row.id] = names
    (seen.importing.add if row.state == repository.IMPORTING else seen.importing.discard)(row.id)
    for name in sorted(names):
        yield Servable(
            name=name,
            project_id=None,
            kind="base",
            revision=row.revision or "",
            base_model_id=row.id,
            base_revision=row.revision or "",
            created=row.created_at,
            checkpoint=False,
        )


def _tuned_change(row: ModelRow, revision: RevisionRow, shared: Mapping[str, tuple[str, ...]]) -> Change:
    if row.deleted_at is not None:
        return Deleted(row.name)
    return Servable(
        name=row.name,
        project_id=row.project_id,
        kind=revision.kind,
        revision=revision.id,
        base_model_id=revision.base_model_id,
        base_revision=revision.base_revision,
        created=row.created_at,
        checkpoint=row.checkpoint,
        shared_with=shared.get(row.name, ()),
    )


def _deployment_change(row: DeploymentRow) -> Change:
    if row.deleted_at is not None:
        return Undeployed(row.project_id, row.name)
    targets = tuple((target["model"], target["weight"]) for target in row.targets)
    return Deployed(row.project_id, row.name, row.number, targets, row.pinned)
