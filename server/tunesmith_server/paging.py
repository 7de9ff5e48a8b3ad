"""Owns the rules that lists share: how large a page may be, what a cursor may look like, what is said of a wrong one.

It must not know what is listed. Text that cannot be an id of ours never reaches the database, which may choke on it.
"""

from __future__ import annotations

import re

from tunesmith_server.errors import InvalidRequestError

MAX_PAGE = 100

_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


def is_id(text: str) -> bool:
    """Whether this can be an id of ours."""
    return _ID.fullmatch(text) is not None


def check_limit(limit: int, most: int = MAX_PAGE) -> None:
    """Raises InvalidRequestError unless a page may have this size."""
    if not 1 <= limit <= most:
        raise InvalidRequestError("invalid_value", f"`limit` must be from 1 to {most}.", param="limit")


def unknown_cursor(after: str) -> InvalidRequestError:
    """What to raise when there is nothing to continue after."""
    message = f"There is nothing with the id {after[:80]!r} to continue after. Pass the last id of the page before."
    return InvalidRequestError("invalid_cursor", message, param="after")
