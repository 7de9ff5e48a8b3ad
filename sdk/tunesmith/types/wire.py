"""Owns what all shapes have in common: how they are read, ids, pages and receipts.
Must not know any noun. Fields that a newer server adds are kept.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class WireModel(BaseModel):
    """The base of all shapes; unknown fields stay readable as attributes."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True, protected_namespaces=())


class Identified(WireModel):
    """Anything with an id."""

    id: str


ItemT = TypeVar("ItemT", bound=Identified)


class ListAnswer(WireModel, Generic[ItemT]):
    """One page as it travels; users see `Page`."""

    data: list[ItemT]
    has_more: bool = False


class Deleted(Identified):
    """The receipt of a deletion."""

    deleted: bool
