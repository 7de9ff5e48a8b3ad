"""Owns what is known of the call under way, for those who must act on it without being handed it.

It must not know transports or domains: each transport enters a call, the authenticator adds its caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tunesmith_server.projects.rate_limits import Allowance

OK = "ok"
ABORTED = "aborted"
"""Outcome of a call that ended without an answer: its caller went away, or this process stops."""


@dataclass(slots=True)
class Call:
    """One public call. Fields are filled in as they become known."""

    request_id: str
    operation: str = ""
    """As projects/scopes.py names operations."""
    project_id: str | None = None
    key_id: str | None = None
    """Of the caller, once the key is known."""
    target_id: str | None = None
    """What the call is about."""
    outcome: str = OK
    """OK, the code of the error, or ABORTED; transports begin with the last."""
    allowance: Allowance | None = None


RecordCall = Callable[[Call], None]
"""Hears of every call once it was answered; must not fail or block."""


def unrecorded(_call: Call) -> None:
    """Stands where nobody wants to hear of calls."""


_current: ContextVar[Call | None] = ContextVar("current_call", default=None)


def current_call() -> Call | None:
    """The call that the running task answers, if it answers one."""
    return _current.get()


def enter(call: Call) -> None:
    """Makes `call` the running task's call until the task ends."""
    _current.set(call)


@contextmanager
def entered(call: Call) -> Iterator[None]:
    """Makes `call` the running task's call within the block."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)
