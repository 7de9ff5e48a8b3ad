"""Owns what can be done with captures: take in, list, read, give metadata, delete.

It must not know transports, gateways or how datasets are made of captures.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from sqlalchemy.exc import IntegrityError

from tunesmith_server.auth import Principal
from tunesmith_server.captures import repository
from tunesmith_server.captures.content import Content, decoded, encoded, prompt_sha256, storage_key
from tunesmith_server.captures.repository import CaptureFilter
from tunesmith_server.core import Core
from tunesmith_server.db.tables import CaptureRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError, QuotaExceededError
from tunesmith_server.failpoints import reach
from tunesmith_server.paging import check_limit, is_id, unknown_cursor
from tunesmith_server.projects.quotas import require_storage
from tunesmith_server.storage.base import ObjectNotFoundError

_READS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class NewCapture:
    """A capture as a gateway reports it; `created` is in Unix seconds."""

    id: str
    project_id: str
    key_id: str
    model: str
    created: int
    request_id: str
    metadata: dict[str, str]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    content: Content


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture with what was said in it."""

    row: CaptureRow
    content: Content


@dataclass(frozen=True, slots=True)
class CapturePage:
    """Part of a list of captures."""

    captures: list[Capture]
    has_more: bool


class CapturesService:
    """Captures of all projects on their way in, of one project at a time on their way out."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def take(self, captures: Sequence[NewCapture]) -> int:
        """Stores those that are not stored yet; returns how many have no project or found no room in its quota.

        One that is reported again, while it is stored or for a day after it was deleted, changes nothing.
        """
        async with self._core.database.read() as session:
            known = await repository.known(session, {capture.id for capture in captures})
        fresh = {capture.id: capture for capture in captures if capture.id not in known}
        by_project = itertools.groupby(sorted(fresh.values(), key=attrgetter("project_id")), attrgetter("project_id"))
        return sum([await self._store(project_id, list(own)) for project_id, own in by_project])

    async def list(
        self,
        principal: Principal,
        which: CaptureFilter,
        *,
        limit: int = 20,
        after: str | None = None,
        order: str = "asc",
    ) -> CapturePage:
        """A page of the project's captures; raises InvalidRequestError for an unknown cursor or order."""
        check_limit(limit)
        check_order(order)
        if "\x00" in which.model:
            raise InvalidRequestError("invalid_value", "`model` is the name of a model.", param="model")
        async with self._core.database.read() as session:
            cursor = None
            if after is not None:
                cursor = await repository.get_cursor(session, principal.project_id, after) if is_id(after) else None
                if cursor is None:
                    raise unknown_cursor(after)
            rows = await repository.list_page(
                session, principal.project_id, which, after=cursor, limit=limit + 1, ascending=order == "asc"
            )
        contents = await self.read(rows[:limit])
        captures = [Capture(row, said) for row, said in zip(rows[:limit], contents, strict=True) if said is not None]
        return CapturePage(captures, len(rows) > limit)

    async def get(self, principal: Principal, capture_id: str) -> Capture:
        """One capture; raises NotFoundError."""
        async with self._core.database.read() as session:
            row = await repository.get(session, principal.project_id, capture_id) if is_id(capture_id) else None
        (content,) = [None] if row is None else await self.read([row])
        if row is None or content is None:
            raise _not_found(capture_id)
        return Capture(row, content)

    async def update(self, principal: Principal, capture_id: str, metadata: dict[str, str]) -> Capture:
        """Gives a capture metadata in the place of those it had; raises NotFoundError."""
        changed = False
        if is_id(capture_id):
            async with self._core.database.write() as session:
                changed = await repository.change_metadata(session, principal.project_id, capture_id, metadata)
        if not changed:
            raise _not_found(capture_id)
        return await self.get(principal, capture_id)

    async def delete(self, principal: Principal, capture_id: str) -> None:
        """Deletes a capture and what was said in it; raises NotFoundError."""
        deleted = False
        if is_id(capture_id):
            async with self._core.database.write() as session:
                deleted = await repository.mark_deleted(
                    session, principal.project_id, capture_id, int(self._core.clock())
                )
        if not deleted:
            raise _not_found(capture_id)
        await self._core.store.delete(storage_key(principal.project_id, capture_id))

    async def read(self, rows: Sequence[CaptureRow]) -> Sequence[Content | None]:
        """What was said in each; None for one that was deleted meanwhile."""
        turn = asyncio.Semaphore(_READS_AT_ONCE)

        async def one(row: CaptureRow) -> Content | None:
            async with turn:
                try:
                    chunks = [chunk async for chunk in self._core.store.read(storage_key(row.project_id, row.id))]
                except ObjectNotFoundError:
                    return None
            return decoded(b"".join(chunks))

        return await asyncio.gather(*map(one, rows))

    async def _store(self, project_id: str, captures: Sequence[NewCapture]) -> int:
        """Objects first: a crash before the rows leaves bytes that the sweep removes, never a row without bytes."""
        now = int(self._core.clock())
        objects = {capture.id: encoded(capture.content) for capture in captures}
        await asyncio.gather(
            *(self._core.store.put_bytes(storage_key(project_id, name), content) for name, content in objects.items())
        )
        reach("capture.stored")
        position = time.time_ns() // 1000
        rows = [
            # One after the other also where many come within a microsecond.
            _columns(capture, len(objects[capture.id]), now) | {"position": position + place}
            for place, capture in enumerate(captures)
        ]
        try:
            async with self._core.database.write() as session:
                await require_storage(session, self._core.settings, project_id, sum(map(len, objects.values())))
                await repository.insert_missing(session, rows)
                reach("capture.writing")
        except (QuotaExceededError, IntegrityError):
            # No room, or no such project. The objects are the sweep's: the same report may be under way a second time,
            # and have found room.
            return len(captures)
        reach("capture.written")
        return 0


def check_order(order: str) -> None:
    """Raises InvalidRequestError unless lists have this order."""
    if order not in ("asc", "desc"):
        raise InvalidRequestError("invalid_value", "`order` must be asc or desc.", param="order")


def _columns(capture: NewCapture, size: int, now: int) -> dict[str, Any]:
    return {
        "id": capture.id,
        "project_id": capture.project_id,
        "key_id": capture.key_id,
        "model": capture.model,
        "request_id": capture.request_id,
        "user_metadata": capture.metadata,
        "finish_reason": capture.finish_reason,
        "prompt_sha256": prompt_sha256(capture.content),
        "prompt_tokens": capture.prompt_tokens,
        "completion_tokens": capture.completion_tokens,
        "bytes": size,
        # A gateway's clock may be ahead, and a capture must not outlive its time.
        "created_at": min(capture.created, now),
    }


def _not_found(capture_id: str) -> NotFoundError:
    message = (
        f"There is no stored chat completion {capture_id[:80]!r} in this project. Only those of keys with `capture` "
        "are stored, and for a limited time."
    )
    return NotFoundError("chat_completion_not_found", message, param="completion_id")
