"""Owns how the dataset check words what it finds.

It must not know what can be wrong.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One thing that is wrong with a row; `what` goes on from "Line 7 …", without a full stop."""

    code: str
    what: str


def shown(name: str) -> str:
    """A name out of the user's file, safe and short enough for a message."""
    return '"' + ascii(name[:40])[1:-1] + '"'
