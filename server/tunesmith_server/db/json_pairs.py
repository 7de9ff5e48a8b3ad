"""Owns the question whether a JSON column of texts by key has a pair, the same on SQLite and PostgreSQL.

It must not know tables.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, String, column, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute


def has_pair(session: AsyncSession, where: InstrumentedAttribute[Any], key: str, value: str) -> ColumnElement[bool]:
    """Whether the object in the column `where` has this value under this key."""
    # Not by a JSON path: keys are the user's, and the two databases quote and escape paths differently.
    each = func.json_each_text if session.get_bind().dialect.name == "postgresql" else func.json_each
    pairs = each(where).table_valued(column("key", String), column("value", String))
    return select(1).select_from(pairs).where(pairs.c.key == key, pairs.c.value == value).exists()
