"""Owns the REST route of the audit log.

It must not know rules or SQL; service.py decides.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from tunesmith_server.audit.repository import AuditQuery
from tunesmith_server.audit.schemas import Actor, ActorKey, ActorProject, AuditLogList, AuditLogObject
from tunesmith_server.audit.service import AuditLog
from tunesmith_server.db.tables import AuditRow
from tunesmith_server.http_auth import CurrentPrincipal

Many = list[str]


def create_router(audit: AuditLog) -> APIRouter:
    """/v1/organization/audit_logs."""
    router = APIRouter(tags=["administration"])

    @router.get("/v1/organization/audit_logs")
    async def list_audit_logs(
        *,
        _principal: CurrentPrincipal,
        after: str | None = None,
        limit: int = 20,
        project_ids: Annotated[Many, Query(alias="project_ids[]", default_factory=list)],
        actor_ids: Annotated[Many, Query(alias="actor_ids[]", default_factory=list)],
        event_types: Annotated[Many, Query(alias="event_types[]", default_factory=list)],
        resource_ids: Annotated[Many, Query(alias="resource_ids[]", default_factory=list)],
        # As people write them who use no client of OpenAI's.
        plain_project_ids: Annotated[Many, Query(alias="project_ids", default_factory=list)],
        plain_actor_ids: Annotated[Many, Query(alias="actor_ids", default_factory=list)],
        plain_event_types: Annotated[Many, Query(alias="event_types", default_factory=list)],
        plain_resource_ids: Annotated[Many, Query(alias="resource_ids", default_factory=list)],
        since: Annotated[int | None, Query(alias="effective_at[gte]", ge=0, lt=10**11)] = None,
        later_than: Annotated[int | None, Query(alias="effective_at[gt]", ge=0, lt=10**11)] = None,
        before: Annotated[int | None, Query(alias="effective_at[lt]", ge=0, lt=10**11)] = None,
        until: Annotated[int | None, Query(alias="effective_at[lte]", ge=0, lt=10**11)] = None,
    ) -> AuditLogList:
        starts = [at for at in (since, None if later_than is None else later_than + 1) if at is not None]
        ends = [at for at in (before, None if until is None else until + 1) if at is not None]
        query = AuditQuery(
            limit,
            project_ids=project_ids + plain_project_ids,
            key_ids=actor_ids + plain_actor_ids,
            actions=event_types + plain_event_types,
            target_ids=resource_ids + plain_resource_ids,
            since=max(starts, default=None),
            until=min(ends, default=None),
        )
        page = await audit.list(query, after)
        data = [_line(row) for row in page.lines]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return AuditLogList(data=data, first_id=first, last_id=last, has_more=page.has_more)

    return router


def _line(row: AuditRow) -> AuditLogObject:
    return AuditLogObject(
        id=row.id,
        type=row.action,
        effective_at=row.created_at,
        project=ActorProject(id=row.project_id),
        actor=Actor(api_key=ActorKey(id=row.key_id)),
        target_id=row.target_id,
        outcome=row.outcome,
        request_id=row.request_id,
    )
