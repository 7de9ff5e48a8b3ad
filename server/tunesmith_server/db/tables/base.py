"""Owns the root of all tables and how Python types become columns.

It must not know any table.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, String
from sqlalchemy.orm import DeclarativeBase

JsonObject = dict[str, Any]


class Base(DeclarativeBase):
    """Root of all rows. Times are Unix seconds. No value is SQL NULL, never the JSON null."""

    type_annotation_map = {  # noqa: RUF012
        JsonObject: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        str: String(255),
        int: BigInteger,
    }
