"""Owns the tables of what control planes share to work as one: leases, counters, answered requests.

It must not know how rows are used; SQL lives in each domain's repository.py.
"""

from __future__ import annotations

from sqlalchemy import Float, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from tunesmith_server.db.tables.base import Base


class IdempotencyRow(Base):
    """The answer that was given to a create call, replayed when the call is repeated."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[str]
    resource_id: Mapped[str]
    created_at: Mapped[int]


class LeaseRow(Base):
    """Temporary ownership of a name, such as leadership: a token and the time until which it counts."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    token: Mapped[str]
    expires_at: Mapped[float] = mapped_column(Float)


class CounterRow(Base):
    """A number that only grows; `registry` orders the changes that gateways follow."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]
