"""Owns the audit log: which calls are written down, when, and how the lines are read.

It must not know transports or what a call did. Lines are written beside the calls, in batches, so that neither a
slow nor an absent database can hold up or break the call that they tell of.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, replace

from prometheus_client import Counter

from tunesmith_server.audit import repository
from tunesmith_server.audit.repository import AuditQuery
from tunesmith_server.calls import Call
from tunesmith_server.core import Core
from tunesmith_server.db.tables import AuditRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.ids import new_id
from tunesmith_server.paging import check_limit
from tunesmith_server.projects.scopes import access_to

_MAX_WAITING = 10_000
_BATCH = 500
_MAX_TARGET = 200
_REFUSED = frozenset({"missing_scope"})
# Its calls are many and none of them reached the service.
_UNWRITTEN = frozenset({"rate_limit_exceeded"})

_log = logging.getLogger(__name__)
_LOST = Counter("tunesmith_audit_lines_lost_total", "Lines of the audit log that could not be written.")
_FAILURES = Counter("tunesmith_audit_write_failures_total", "Attempts to write the audit log that failed.")


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Part of the audit log."""

    lines: list[AuditRow]
    has_more: bool


class AuditLog:
    """The audit log of an installation. `woken` is set when there is something to flush."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiting: deque[dict[str, object]] = deque()
        self.woken = asyncio.Event()

    def record(self, call: Call) -> None:
        """Takes note of an answered call if it is one to be written down."""
        action = _action(call)
        if action is None:
            return
        # Not only when there are exactly so many: a batch that could not be written comes back on top.
        while len(self._waiting) >= _MAX_WAITING:
            self._waiting.popleft()
            _LOST.inc()
            _log.error("a line of the audit log is lost: the database does not take them")
        self._waiting.append(
            {
                "id": new_id("audit_log-"),
                "project_id": call.project_id,
                "key_id": call.key_id,
                "action": action,
                "target_id": _storable(call.target_id),
                "outcome": call.outcome,
                "request_id": call.request_id,
                "position": time.time_ns() // 1000,
                "created_at": int(self._core.clock()),
            }
        )
        self.woken.set()

    async def flush(self) -> None:
        """Writes what waits; when that fails the lines wait for the next time and the error is raised."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
            try:
                async with self._core.database.write() as session:
                    await repository.insert_all(session, batch)
            except BaseException:
                _FAILURES.inc()
                self._waiting.extendleft(reversed(batch))
                raise

    async def list(self, query: AuditQuery, after: str | None = None) -> AuditPage:
        """A page of at most `query.limit` lines, newest first.

        Raises InvalidRequestError for a bad cursor or limit.
        """
        check_limit(query.limit)
        async with self._core.database.read() as session:
            cursor = None
            if after is not None:
                cursor = await repository.get(session, after) if after.isprintable() else None
                if cursor is None:
                    message = "There is no such line to continue after. Pass the last id of the page before."
                    raise InvalidRequestError("invalid_cursor", message, param="after")
            rows = await repository.list_page(session, replace(query, limit=query.limit + 1, after=cursor))
        return AuditPage(rows[: query.limit], len(rows) > query.limit)


def _action(call: Call) -> str | None:
    """What the log calls the call; None when it is not written down."""
    if call.key_id is None or call.outcome in _UNWRITTEN:
        return None
    action = access_to(call.operation).action
    return action or (call.operation if call.outcome in _REFUSED else None)


def _storable(target: str | None) -> str | None:
    """Ids of ours are short and plain; anything else is what a caller made up, and a database may choke on it."""
    return target if target and len(target) <= _MAX_TARGET and target.isprintable() else None
