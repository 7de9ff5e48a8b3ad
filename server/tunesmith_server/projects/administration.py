"""Owns the life of projects: made, listed, changed, archived; and their quotas.

It must not know transports or how a quota is enforced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError

from tunesmith_server.core import Core
from tunesmith_server.db.tables import ProjectRow
from tunesmith_server.errors import ConflictError, InvalidRequestError
from tunesmith_server.ids import new_id
from tunesmith_server.paging import check_limit, unknown_cursor
from tunesmith_server.projects import repository
from tunesmith_server.projects.key_lookup import KeyLookup
from tunesmith_server.projects.quotas import NAMES, Quotas, check_quota, read_quotas
from tunesmith_server.projects.service import DEFAULT_PROJECT, project_not_found

QuotaChanges = Mapping[str, int | float | None]
"""Quotas by name; None takes the project's own value away, so that the installation's default holds."""

# It becomes a part of model names, which are separated by colons.
_PROJECT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Project:
    """A project as it is shown. `own_quotas` are set for it, `quotas` are what holds."""

    id: str
    name: str
    created_at: int
    archived_at: int | None
    own_quotas: dict[str, int | float]
    quotas: Quotas


@dataclass(frozen=True, slots=True)
class ProjectPage:
    """Part of the list of projects."""

    projects: list[Project]
    has_more: bool


class Administration:
    """Operations on the projects of an installation. `lookup` is told when keys may mean something else."""

    def __init__(self, core: Core, lookup: KeyLookup) -> None:
        self._core = core
        self._lookup = lookup

    async def create(self, name: str, project_id: str | None = None, quotas: QuotaChanges | None = None) -> Project:
        """Makes a project; raises InvalidRequestError, or ConflictError when the id is taken."""
        if project_id is not None and not _PROJECT_ID.fullmatch(project_id):
            message = "`id` must be up to 64 lower-case letters, digits, - and _, beginning with a letter or digit."
            raise InvalidRequestError("invalid_value", message, param="id")
        row = ProjectRow(
            id=project_id or new_id("proj_", 16),
            name=_checked_name(name),
            quotas=_changed({}, quotas or {}),
            created_at=int(self._core.clock()),
        )
        try:
            async with self._core.database.write() as session:
                await repository.insert_project(session, row)
        except IntegrityError:
            message = f"There is a project {row.id!r} already. Choose another id."
            raise ConflictError("project_exists", message, param="id") from None
        return self._shown(row)

    async def list(self, *, limit: int = 20, after: str | None = None, archived_too: bool = False) -> ProjectPage:
        """Projects, oldest first; raises InvalidRequestError for a bad cursor."""
        check_limit(limit)
        async with self._core.database.read() as session:
            cursor = None
            if after is not None:
                cursor = await repository.get_project(session, after)
                if cursor is None:
                    raise unknown_cursor(after)
            rows = await repository.list_projects(session, limit=limit + 1, after=cursor, archived_too=archived_too)
        return ProjectPage([self._shown(row) for row in rows[:limit]], len(rows) > limit)

    async def get(self, project_id: str) -> Project:
        """One project, archived or not; raises NotFoundError."""
        async with self._core.database.read() as session:
            row = await repository.get_project(session, project_id)
        if row is None:
            raise project_not_found(project_id)
        return self._shown(row)

    async def update(self, project_id: str, *, name: str | None = None, quotas: QuotaChanges | None = None) -> Project:
        """Changes the name and those quotas that are given; raises NotFoundError or InvalidRequestError."""
        async with self._core.database.write() as session:
            # Or of two calls that change different quotas at once, one would take the other's back.
            await repository.in_turn(session, project_id)
            row = await repository.get_project(session, project_id)
            if row is None:
                raise project_not_found(project_id)
            changes = {
                "name": row.name if name is None else _checked_name(name),
                "quotas": _changed(row.quotas, quotas or {}),
            }
            if not await repository.change_project(session, project_id, changes):
                raise _archived(project_id)
        self._lookup.forget()
        return await self.get(project_id)

    async def archive(self, project_id: str) -> Project:
        """Ends the project's keys and keeps its data; repeated, it changes nothing.

        Raises NotFoundError, or InvalidRequestError for the default project, which has the keys of operators.
        """
        if project_id == DEFAULT_PROJECT:
            message = "The default project cannot be archived: the installation's own keys are in it."
            raise InvalidRequestError("default_project", message, param="project_id")
        now = int(self._core.clock())
        async with self._core.database.write() as session:
            await repository.change_project(session, project_id, {"archived_at": now})
        self._lookup.forget()
        return await self.get(project_id)

    def _shown(self, row: ProjectRow) -> Project:
        quotas = read_quotas(row.quotas, self._core.settings)
        return Project(row.id, row.name, row.created_at, row.archived_at, dict(row.quotas), quotas)


def _changed(stored: Mapping[str, int | float], changes: QuotaChanges) -> dict[str, int | float]:
    for name, value in changes.items():
        if name not in NAMES:
            message = f"There is no quota {name!r}. Quotas are {', '.join(NAMES)}."
            raise InvalidRequestError("unknown_quota", message, param=f"quotas.{name}")
        check_quota(name, value)
    merged = {**stored, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def _checked_name(name: str) -> str:
    if not 1 <= len(name) <= 255 or not name.isprintable():
        message = "`name` must be printable, of 1 to 255 characters."
        raise InvalidRequestError("invalid_value", message, param="name")
    return name


def _archived(project_id: str) -> InvalidRequestError:
    return InvalidRequestError("project_archived", f"Project {project_id!r} is archived and cannot be changed.")
