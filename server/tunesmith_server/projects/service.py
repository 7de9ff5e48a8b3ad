"""Owns the life of API keys: first key at start, making, listing, revoking, recognising.

It must not know how a key travels; auth.py reads headers.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import IntegrityError

from tunesmith_server.auth import Principal, write_private_file
from tunesmith_server.core import Core
from tunesmith_server.db.tables import ApiKeyRow, ProjectRow
from tunesmith_server.errors import NotFoundError
from tunesmith_server.ids import new_id
from tunesmith_server.projects import repository

DEFAULT_PROJECT = "default"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as it is shown once; only its hash is kept."""

    id: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be shown of a key later. Times are Unix seconds."""

    id: str
    name: str
    created_at: int
    revoked_at: int | None


class ProjectsService:
    """Operations on projects and their keys."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def ensure_first_key(self) -> None:
        """Makes the default project and its first key; on later starts it only adds a changed TUNESMITH_API_KEY."""
        await self._ensure_default_project()
        configured = self._core.settings.api_key
        if configured is not None:
            await self._ensure_key(configured.get_secret_value(), "environment")
            return
        async with self._core.database.read() as session:
            if await repository.count_keys(session, DEFAULT_PROJECT):
                return
        # File first: after a crash in between, the next start finds the file and stores the same key.
        path = self._core.settings.home / "api_key"
        await self._ensure_key(await asyncio.to_thread(_generated_key, path), "first")
        _log.info("the first API key is in %s", path)

    async def find_principal(self, key: str) -> Principal | None:
        """The owner of an API key that is not revoked, or None."""
        key_hash = self._core.signer.hash_api_key(key)
        async with self._core.database.read() as session:
            row = await repository.find_key(session, key_hash)
        if row is None or row.revoked_at is not None or not hmac.compare_digest(row.hash, key_hash):
            return None
        return Principal(project_id=row.project_id, key_id=row.id)

    async def create_key(self, project_id: str, name: str) -> NewKey:
        """Makes a key; raises NotFoundError for an unknown project."""
        new = NewKey(id=new_id("key_"), key=_new_key())
        async with self._core.database.write() as session:
            if await repository.get_project(session, project_id) is None:
                raise NotFoundError("project_not_found", f"There is no project {project_id!r}.", param="project")
            await repository.insert_key(session, self._row(new, project_id, name))
        return new

    async def list_keys(self, project_id: str) -> list[KeyInfo]:
        """Keys of the project, oldest first, revoked ones too."""
        async with self._core.database.read() as session:
            rows = await repository.list_keys(session, project_id)
        return [KeyInfo(row.id, row.name, row.created_at, row.revoked_at) for row in rows]

    async def revoke_key(self, project_id: str, key_id: str) -> None:
        """Ends a key at once; raises NotFoundError."""
        async with self._core.database.write() as session:
            revoked = await repository.revoke_key(session, project_id, key_id, int(self._core.clock()))
        if not revoked:
            raise NotFoundError("key_not_found", f"Project {project_id!r} has no live key {key_id!r}.", param="key")

    async def _ensure_default_project(self) -> None:
        async with self._core.database.read() as session:
            if await repository.get_project(session, DEFAULT_PROJECT) is not None:
                return
        row = ProjectRow(id=DEFAULT_PROJECT, created_at=int(self._core.clock()))
        try:
            async with self._core.database.write() as session:
                await repository.insert_project(session, row)
        except IntegrityError:
            _log.info("another server made the default project at the same time")

    async def _ensure_key(self, key: str, name: str) -> None:
        async with self._core.database.read() as session:
            if await repository.find_key(session, self._core.signer.hash_api_key(key)) is not None:
                return
        row = self._row(NewKey(id=new_id("key_"), key=key), DEFAULT_PROJECT, name)
        try:
            async with self._core.database.write() as session:
                await repository.insert_key(session, row)
        except IntegrityError:
            _log.info("another server stored the same key at the same time")

    def _row(self, new: NewKey, project_id: str, name: str) -> ApiKeyRow:
        return ApiKeyRow(
            id=new.id,
            project_id=project_id,
            name=name,
            hash=self._core.signer.hash_api_key(new.key),
            created_at=int(self._core.clock()),
            revoked_at=None,
        )


def _generated_key(path: Path) -> str:
    write_private_file(path, _new_key())
    return path.read_text().strip()


def _new_key() -> str:
    return f"ts-{secrets.token_urlsafe(32)}"
