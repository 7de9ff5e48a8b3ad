"""Owns the REST shapes of the audit log, as OpenAI's administration API has them, and our additions.

It must not know rows or rules.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class ActorKey(BaseModel):
    """The key that was used."""

    id: str | None
    type: Literal["service_account"] = "service_account"


class Actor(BaseModel):
    """Who it was."""

    type: Literal["api_key"] = "api_key"
    api_key: ActorKey


class ActorProject(BaseModel):
    """The actor's project."""

    id: str | None


class AuditLogObject(BaseModel):
    """One line. `type` has more values than OpenAI's; `target_id`, `outcome`, `request_id` are our additions."""

    id: str
    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str
    effective_at: int
    project: ActorProject
    actor: Actor
    target_id: str | None
    outcome: str
    request_id: str


class AuditLogList(BaseModel):
    """A page of lines, newest first."""

    object: Literal["list"] = "list"
    data: list[AuditLogObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
