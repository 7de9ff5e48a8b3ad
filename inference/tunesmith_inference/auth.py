"""Owns who is calling: API key → project, remembered for a short while.

It must not know how keys are stored or where the control plane is.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tunesmith_inference.errors import GatewayError, control_plane_unavailable

FRESH_SECONDS = 5.0
"""A revoked key works at most this long."""
OUTAGE_SECONDS = 600.0
"""A key seen before works this long while the control plane cannot be asked."""

_MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Principal:
    """A valid key's project, the key's id, and what it may use; None is no limit."""

    project_id: str
    key_id: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    capture: bool = False
    """Whether what it asks and is answered is kept."""


class KeyRejected(Exception):
    """The control plane refuses the key; `error` is what its sender is told."""

    def __init__(self, error: GatewayError | None = None) -> None:
        super().__init__()
        self.error = error or _unauthorised("The API key is not valid. Check it, or make a new one.")


class KeysUnavailable(Exception):
    """The control plane could not be asked."""


class Authenticator:
    """Answers who a bearer key belongs to, asking `lookup` only when it does not remember, once at a time for a key.

    `lookup` raises KeyRejected or KeysUnavailable. Only hashes of keys are kept.
    """

    def __init__(
        self, lookup: Callable[[str], Awaitable[Principal]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lookup = lookup
        self._clock = clock
        self._remembered: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Principal]] = {}

    async def principal(self, authorization: str | None) -> Principal:
        """Who sent this Authorization header; raises 401, or 503 when nobody can tell."""
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise _unauthorised("Send your API key in the header `Authorization: Bearer KEY`.")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        seen, principal = self._remembered.get(digest, (float("-inf"), None))
        age = self._clock() - seen
        if principal is not None and age < FRESH_SECONDS:
            if age > FRESH_SECONDS / 2:
                # Asked again ahead of time: a key that is in use all the time never makes a request wait.
                self._ask(digest, key)
            return principal
        asking = self._ask(digest, key)
        await asyncio.wait({asking})
        try:
            return asking.result()
        except KeyRejected as refusal:
            raise refusal.error from None
        except KeysUnavailable:
            if principal is not None and age < OUTAGE_SECONDS:
                return principal
            raise control_plane_unavailable() from None

    def _ask(self, digest: bytes, key: str) -> asyncio.Task[Principal]:
        """The one look-up of a key that is under way, begun if there is none."""
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.create_task(self._look_up(digest, key))
            # A failure is for those who wait; where nobody does, the next request finds out.
            asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return asking

    async def _look_up(self, digest: bytes, key: str) -> Principal:
        try:
            found = await self._lookup(key)
        except KeyRejected:
            self._remembered.pop(digest, None)
            raise
        else:
            self._remember(digest, found)
            return found
        finally:
            del self._asking[digest]

    def _remember(self, digest: bytes, principal: Principal) -> None:
        self._remembered[digest] = (self._clock(), principal)
        self._remembered.move_to_end(digest)
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)


def _unauthorised(message: str) -> GatewayError:
    return GatewayError(401, "invalid_api_key", message)
