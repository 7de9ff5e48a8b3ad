"""Owns how a key becomes a caller on every call: remembered for seconds, and its last use noted beside the calls.

It must not know how keys are made or changed; who changes one says so with `forget`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import ApiKeyRow, ProjectRow
from tunesmith_server.errors import UnauthenticatedError
from tunesmith_server.projects import repository
from tunesmith_server.projects.quotas import read_quotas
from tunesmith_server.projects.rate_limits import RateLimits

FRESH_SECONDS = 2.0
"""A key that another process revoked works at most this long."""
USE_NOTED_SECONDS = 60
"""The last use of a key is written at most this often."""

_MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class _Known:
    principal: Principal
    expires_at: int | None
    read_at: float


class KeyLookup:
    """Looks keys up by their hash and remembers them for FRESH_SECONDS."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._generation = 0
        self._noted: dict[str, int] = {}
        self._unwritten: dict[str, int] = {}

    async def find_principal(self, key: str) -> Principal | None:
        """The owner of a key that is not revoked, or None; raises UnauthenticatedError when it has ended otherwise."""
        key_hash = self._core.signer.hash_api_key(key)
        now = self._core.clock()
        known = self._known.get(key_hash)
        if known is None or not 0 <= now - known.read_at < FRESH_SECONDS:
            known = await self._read(key_hash, now)
        if known is None:
            return None
        if known.expires_at is not None and known.expires_at <= now:
            raise UnauthenticatedError("api_key_expired", "This API key has expired. Ask the operator for a new one.")
        self._note_use(known.principal.key_id, int(now))
        return known.principal

    def forget(self) -> None:
        """Makes every change of keys and projects that was committed before count from the next call on."""
        self._generation += 1
        self._known.clear()

    async def write_uses(self) -> None:
        """Writes the last uses noted since; what cannot be written, or is cut off, waits for the next time."""
        uses, self._unwritten = self._unwritten, {}
        if not uses:
            return
        try:
            async with self._core.database.write() as session:
                # In one order everywhere, or two servers that write the same keys could wait for each other.
                for key_id, at in sorted(uses.items()):
                    await repository.note_use(session, key_id, at)
        except BaseException:
            self._unwritten = uses | self._unwritten
            raise

    async def _read(self, key_hash: str, now: float) -> _Known | None:
        generation = self._generation
        async with self._core.database.read() as session:
            found = await repository.find_key(session, key_hash)
        if found is None or found[0].revoked_at is not None:
            self._known.pop(key_hash, None)
            return None
        key, project = found
        if project.archived_at is not None:
            message = "The project of this key is archived. Use a key of another project."
            raise UnauthenticatedError("project_archived", message)
        known = _Known(self._principal(key, project), key.expires_at, now)
        # What was changed while this was read may be older than the change.
        if generation == self._generation:
            self._known[key_hash] = known
            self._known.move_to_end(key_hash)
            if len(self._known) > _MAX_REMEMBERED:
                self._known.popitem(last=False)
        return known

    def _principal(self, key: ApiKeyRow, project: ProjectRow) -> Principal:
        quotas = read_quotas(project.quotas, self._core.settings)
        limits = RateLimits(quotas.requests_per_minute, quotas.tokens_per_minute)
        return Principal(project.id, key.id, frozenset(key.scopes), limits, key.capture)

    def _note_use(self, key_id: str, now: int) -> None:
        if now - self._noted.get(key_id, 0) >= USE_NOTED_SECONDS:
            self._noted[key_id] = now
            self._unwritten[key_id] = now
