"""Owns the life of API keys: first key at start, making, listing, rotating, revoking, recognising.

It must not know how a key travels; auth.py reads headers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal, write_private_file
from tunesmith_server.core import Core
from tunesmith_server.db.tables import ApiKeyRow, ProjectRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.ids import new_id
from tunesmith_server.paging import check_limit, unknown_cursor
from tunesmith_server.projects import repository, scopes
from tunesmith_server.projects.key_lookup import KeyLookup

DEFAULT_PROJECT = "default"
DEFAULT_OVERLAP_SECONDS = 24 * 3600
"""How long a rotated key still works unless told otherwise."""
MAX_OVERLAP_SECONDS = 30 * 24 * 3600
MAX_LIFETIME_SECONDS = 10 * 365 * 24 * 3600

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be shown of a key. Times are Unix seconds."""

    id: str
    name: str
    redacted: str
    scopes: tuple[str, ...]
    capture: bool
    """Whether its chat completions are kept."""
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as it is shown once; only its hash is kept."""

    info: KeyInfo
    key: str = field(repr=False)

    @property
    def id(self) -> str:
        """The key's id, which is no secret."""
        return self.info.id


@dataclass(frozen=True, slots=True)
class KeyPage:
    """Part of a list of keys."""

    keys: list[KeyInfo]
    has_more: bool


class ProjectsService:
    """Operations on the keys of projects."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.lookup = KeyLookup(core)

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
        """As KeyLookup.find_principal."""
        return await self.lookup.find_principal(key)

    async def create_key(
        self,
        project_id: str,
        name: str,
        key_scopes: Sequence[str] = (scopes.PROJECT,),
        expires_in_seconds: int | None = None,
        *,
        capture: bool = False,
    ) -> NewKey:
        """Makes a key; raises NotFoundError for an unknown project, InvalidRequestError for an unknown scope."""
        _check_scopes(key_scopes)
        _check_name(name)
        _check_lifetime(expires_in_seconds)
        now = int(self._core.clock())
        expires_at = None if expires_in_seconds is None else now + expires_in_seconds
        key = _new_key()
        row = self._row(key, project_id, name, key_scopes, expires_at, capture=capture)
        async with self._core.database.write() as session:
            project = await repository.get_project(session, project_id)
            if project is None or project.archived_at is not None:
                raise project_not_found(project_id)
            await repository.insert_key(session, row)
        return NewKey(_info(row), key)

    async def list_keys(self, project_id: str) -> list[KeyInfo]:
        """Keys of the project, oldest first, revoked ones too."""
        async with self._core.database.read() as session:
            return [_info(row) for row in await repository.list_keys(session, project_id)]

    async def page_of_keys(self, project_id: str, *, limit: int = 20, after: str | None = None) -> KeyPage:
        """Live keys of the project, oldest first; raises NotFoundError, or InvalidRequestError for a bad cursor."""
        check_limit(limit)
        async with self._core.database.read() as session:
            if await repository.get_project(session, project_id) is None:
                raise project_not_found(project_id)
            cursor = None
            if after is not None:
                cursor = await repository.get_key_as_cursor(session, project_id, after)
                if cursor is None:
                    raise unknown_cursor(after)
            rows = await repository.list_keys(session, project_id, limit=limit + 1, after=cursor, revoked_too=False)
        return KeyPage([_info(row) for row in rows[:limit]], len(rows) > limit)

    async def get_key(self, project_id: str, key_id: str) -> KeyInfo:
        """A live key; raises NotFoundError."""
        async with self._core.database.read() as session:
            row = await repository.get_key(session, project_id, key_id)
        if row is None:
            raise _key_not_found(project_id, key_id)
        return _info(row)

    async def update_key(
        self,
        project_id: str,
        key_id: str,
        key_scopes: Sequence[str] | None = None,
        expires_in_seconds: int | None = None,
        *,
        capture: bool | None = None,
    ) -> KeyInfo:
        """Changes scopes (none at all: everything within the project), expiry and capture of a live key, as given.

        Raises NotFoundError, or InvalidRequestError for an unknown scope, a wrong expiry or a key that has expired.
        """
        _check_lifetime(expires_in_seconds)
        now = int(self._core.clock())
        changes: dict[str, object] = {}
        if key_scopes is not None:
            _check_scopes(key_scopes or (scopes.PROJECT,))
            changes["scopes"] = list(key_scopes) or [scopes.PROJECT]
        if expires_in_seconds is not None:
            changes["expires_at"] = now + expires_in_seconds
        if capture is not None:
            changes["capture"] = capture
        async with self._core.database.write() as session:
            await self._unexpired(session, project_id, key_id, now)
            if changes:
                await repository.change_key(session, project_id, key_id, changes)
        self.lookup.forget()
        return await self.get_key(project_id, key_id)

    async def rotate_key(self, project_id: str, key_id: str, overlap_seconds: int = DEFAULT_OVERLAP_SECONDS) -> NewKey:
        """Makes a key with the name, scopes, expiry and capture of a live one, which ends after the overlap.

        Raises NotFoundError, or InvalidRequestError for an overlap out of range or a key that has expired.
        """
        if not 0 <= overlap_seconds <= MAX_OVERLAP_SECONDS:
            message = f"`overlap_seconds` must be from 0 to {MAX_OVERLAP_SECONDS}."
            raise InvalidRequestError("invalid_value", message, param="overlap_seconds")
        now = int(self._core.clock())
        ends_at = now + overlap_seconds
        key = _new_key()
        async with self._core.database.write() as session:
            old = await self._unexpired(session, project_id, key_id, now)
            row = self._row(key, project_id, old.name, old.scopes, old.expires_at, capture=old.capture)
            await repository.insert_key(session, row)
            ends_at = ends_at if old.expires_at is None else min(old.expires_at, ends_at)
            if not await repository.change_key(session, project_id, key_id, {"expires_at": ends_at}):
                # Revoked in this very moment: then nothing may live on in its place.
                raise _key_not_found(project_id, key_id)
        self.lookup.forget()
        return NewKey(_info(row), key)

    async def revoke_key(self, project_id: str, key_id: str) -> None:
        """Ends a key at once; raises NotFoundError."""
        async with self._core.database.write() as session:
            revoked = await repository.revoke_key(session, project_id, key_id, int(self._core.clock()))
        self.lookup.forget()
        if not revoked:
            raise _key_not_found(project_id, key_id)

    async def _unexpired(self, session: AsyncSession, project_id: str, key_id: str, now: int) -> ApiKeyRow:
        row = await repository.get_key(session, project_id, key_id)
        if row is None:
            raise _key_not_found(project_id, key_id)
        if row.expires_at is not None and row.expires_at <= now:
            raise InvalidRequestError("api_key_expired", "This key has expired. Make a new one instead.")
        return row

    async def _ensure_default_project(self) -> None:
        async with self._core.database.read() as session:
            if await repository.get_project(session, DEFAULT_PROJECT) is not None:
                return
        row = ProjectRow(id=DEFAULT_PROJECT, name=DEFAULT_PROJECT, created_at=int(self._core.clock()))
        try:
            async with self._core.database.write() as session:
                await repository.insert_project(session, row)
        except IntegrityError:
            _log.info("another server made the default project at the same time")

    async def _ensure_key(self, key: str, name: str) -> None:
        async with self._core.database.read() as session:
            if await repository.find_key(session, self._core.signer.hash_api_key(key)) is not None:
                return
        row = self._row(key, DEFAULT_PROJECT, name, (scopes.EVERYTHING,), None, capture=False)
        try:
            async with self._core.database.write() as session:
                await repository.insert_key(session, row)
        except IntegrityError:
            _log.info("another server stored the same key at the same time")

    def _row(
        self, key: str, project_id: str, name: str, key_scopes: Sequence[str], expires_at: int | None, *, capture: bool
    ) -> ApiKeyRow:
        return ApiKeyRow(
            id=new_id("key_"),
            project_id=project_id,
            name=name,
            hash=self._core.signer.hash_api_key(key),
            redacted=_redacted(key),
            scopes=list(key_scopes),
            capture=capture,
            created_at=int(self._core.clock()),
            expires_at=expires_at,
        )


def project_not_found(project_id: str) -> NotFoundError:
    """What a caller is told of a project that is not there or is archived."""
    return NotFoundError("project_not_found", f"There is no project {project_id[:80]!r}.", param="project_id")


def _key_not_found(project_id: str, key_id: str) -> NotFoundError:
    message = f"Project {project_id[:80]!r} has no live key {key_id[:80]!r}."
    return NotFoundError("key_not_found", message, param="api_key_id")


def _check_scopes(key_scopes: Sequence[str]) -> None:
    wrong = scopes.unknown(key_scopes)
    if wrong or not key_scopes:
        message = f"Give at least one scope, and only these: {', '.join(scopes.SCOPES)}."
        raise InvalidRequestError("unknown_scope", message, param="scopes")


def _check_lifetime(seconds: int | None) -> None:
    if seconds is not None and not 1 <= seconds <= MAX_LIFETIME_SECONDS:
        message = f"`expires_in_seconds` must be from 1 to {MAX_LIFETIME_SECONDS}. Leave it out for a key without end."
        raise InvalidRequestError("invalid_value", message, param="expires_in_seconds")


def _check_name(name: str) -> None:
    if len(name) > 255 or not (name.isprintable()):
        raise InvalidRequestError("invalid_value", "`name` must be printable, of at most 255 characters.", param="name")


def _info(row: ApiKeyRow) -> KeyInfo:
    return KeyInfo(
        id=row.id,
        name=row.name,
        redacted=row.redacted,
        scopes=tuple(row.scopes),
        capture=row.capture,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )


def _redacted(key: str) -> str:
    """Enough of a long random key to recognise it by, nothing of one that an operator made up short."""
    return f"{key[:5]}...{key[-4:]}" if len(key) >= 32 else "..."


def _generated_key(path: Path) -> str:
    write_private_file(path, _new_key())
    return path.read_text().strip()


def _new_key() -> str:
    return f"ts-{secrets.token_urlsafe(32)}"
