"""Owns the wire shapes of checkpoint permissions, as OpenAI's clients know them.

It must not know rows.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class CreatePermissions(BaseModel):
    """The body of POST …/permissions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project_ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=100)
    ]


class PermissionObject(BaseModel):
    """One project that may prompt the checkpoint."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class PermissionPage(BaseModel):
    """Projects that may prompt the checkpoint."""

    object: Literal["list"] = "list"
    data: list[PermissionObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedPermission(BaseModel):
    """What is left of a permission."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: Literal[True] = True
