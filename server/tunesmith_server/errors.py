"""Owns the tree of errors that users see, free of any transport.

It must not know HTTP or gRPC: error_rendering.py holds the one table that maps these classes to both.

    TunesmithError
    ├── InvalidRequestError     the caller must change the request
    │   └── PayloadTooLargeError
    ├── UnauthenticatedError    no key, or a wrong one
    ├── PermissionDeniedError   a valid key that may not do this
    ├── NotFoundError           absent, or another project's
    ├── ConflictError           the state of the thing forbids it
    ├── FencedError             a run whose attempt is no longer current
    ├── QuotaExceededError      too much, or too fast
    ├── UnavailableError        try again later
    │   └── StorageFullError    nothing can be stored until an operator makes room
    └── InternalError           our defect; the log has the cause
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request or a file."""

    code: str
    """Stable, snake_case."""
    message: str
    """A sentence that tells the user what to do."""
    param: str | None = None
    line: int | None = None
    """1-based line of the file at fault."""


class TunesmithError(Exception):
    """Root of everything that may be shown to a user.

    Attributes: code (stable, snake_case), message (a sentence that tells what to do), param (the request
    field at fault), problems (all that is wrong when several things are), retry_after (seconds).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        problems: Sequence[Problem] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.problems = tuple(problems)
        self.retry_after = retry_after


class InvalidRequestError(TunesmithError):
    """The caller must change the request."""


class PayloadTooLargeError(InvalidRequestError):
    """The body is over a limit."""


class UnauthenticatedError(TunesmithError):
    """No API key, or a wrong one."""


class PermissionDeniedError(TunesmithError):
    """The key is valid but may not do this."""


class NotFoundError(TunesmithError):
    """The thing does not exist in the caller's project."""


class ConflictError(TunesmithError):
    """The state of the thing forbids the operation; repeating it will not help."""


class FencedError(TunesmithError):
    """The calling run belongs to an attempt that is no longer current; it must exit at once."""

    def __init__(self) -> None:
        super().__init__("fenced", "A newer attempt of this job exists or the job has ended. Exit without uploads.")


class QuotaExceededError(TunesmithError):
    """A quota or rate limit is used up."""


class UnavailableError(TunesmithError):
    """A part that is needed cannot be reached now; whoever asked is always told when to ask again."""

    def __init__(self, code: str, message: str, *, param: str | None = None, retry_after: float = 5.0) -> None:
        super().__init__(code, message, param=param, retry_after=retry_after)


class StorageFullError(UnavailableError):
    """Object storage has no room left."""


class InternalError(TunesmithError):
    """A defect of ours; the log holds the cause under the request id."""
