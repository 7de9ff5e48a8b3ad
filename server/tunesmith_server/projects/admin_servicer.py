"""Owns the gRPC view of administration, the twin of the routes under /v1/organization.

It must not know rules or SQL; administration.py, service.py, usage.py and the audit log decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc.aio

from tunesmith_proto.projects.v1 import admin_pb2 as pb
from tunesmith_proto.projects.v1 import admin_pb2_grpc
from tunesmith_server.audit.repository import AuditQuery
from tunesmith_server.audit.service import AuditLog
from tunesmith_server.auth import Authenticator, authorization_of
from tunesmith_server.db.tables import AuditRow
from tunesmith_server.projects.administration import Administration, Project
from tunesmith_server.projects.quotas import NAMES
from tunesmith_server.projects.scopes import PROJECT
from tunesmith_server.projects.service import DEFAULT_OVERLAP_SECONDS, KeyInfo, ProjectsService
from tunesmith_server.projects.usage import UsageService
from tunesmith_server.projects.usage_messages import bucket_messages, usage_filter, usage_query

Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_PAGE = 20


@dataclass(frozen=True, slots=True)
class AdminParts:
    """The services behind the operators' calls."""

    administration: Administration
    keys: ProjectsService
    audit: AuditLog
    usage: UsageService


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """AdminService, for keys with the scope admin."""

    def __init__(self, parts: AdminParts, authenticator: Authenticator) -> None:
        self._administration = parts.administration
        self._keys = parts.keys
        self._audit = parts.audit
        self._usage = parts.usage
        self._authenticator = authenticator

    async def CreateProject(  # noqa: N802
        self, request: pb.CreateProjectRequest, context: Context
    ) -> pb.CreateProjectResponse:
        """Makes a project."""
        await self._admit(context)
        project = await self._administration.create(request.name, request.id or None, _quota_changes(request.quotas))
        return pb.CreateProjectResponse(project=_project(project))

    async def ListProjects(  # noqa: N802
        self, request: pb.ListProjectsRequest, context: Context
    ) -> pb.ListProjectsResponse:
        """Projects, oldest first."""
        await self._admit(context)
        page = await self._administration.list(
            limit=request.limit or _DEFAULT_PAGE, after=request.after or None, archived_too=request.include_archived
        )
        return pb.ListProjectsResponse(projects=[_project(one) for one in page.projects], has_more=page.has_more)

    async def GetProject(  # noqa: N802
        self, request: pb.GetProjectRequest, context: Context
    ) -> pb.GetProjectResponse:
        """One project."""
        await self._admit(context)
        return pb.GetProjectResponse(project=_project(await self._administration.get(request.project_id)))

    async def UpdateProject(  # noqa: N802
        self, request: pb.UpdateProjectRequest, context: Context
    ) -> pb.UpdateProjectResponse:
        """Changes a project's name and quotas."""
        await self._admit(context)
        name = request.name if request.HasField("name") else None
        quotas = dict.fromkeys(request.default_quotas) | _quota_changes(request.quotas)
        project = await self._administration.update(request.project_id, name=name, quotas=quotas)
        return pb.UpdateProjectResponse(project=_project(project))

    async def ArchiveProject(  # noqa: N802
        self, request: pb.ArchiveProjectRequest, context: Context
    ) -> pb.ArchiveProjectResponse:
        """Ends a project's keys."""
        await self._admit(context)
        return pb.ArchiveProjectResponse(project=_project(await self._administration.archive(request.project_id)))

    async def CreateApiKey(  # noqa: N802
        self, request: pb.CreateApiKeyRequest, context: Context
    ) -> pb.CreateApiKeyResponse:
        """Makes a key and shows it, once."""
        await self._admit(context)
        expires = request.expires_in_seconds if request.HasField("expires_in_seconds") else None
        scopes = list(request.scopes) or [PROJECT]
        new = await self._keys.create_key(request.project_id, request.name, scopes, expires, capture=request.capture)
        return pb.CreateApiKeyResponse(api_key=_key(new.info), value=new.key)

    async def ListApiKeys(  # noqa: N802
        self, request: pb.ListApiKeysRequest, context: Context
    ) -> pb.ListApiKeysResponse:
        """Live keys of a project, oldest first."""
        await self._admit(context)
        page = await self._keys.page_of_keys(
            request.project_id, limit=request.limit or _DEFAULT_PAGE, after=request.after or None
        )
        return pb.ListApiKeysResponse(api_keys=[_key(key) for key in page.keys], has_more=page.has_more)

    async def GetApiKey(  # noqa: N802
        self, request: pb.GetApiKeyRequest, context: Context
    ) -> pb.GetApiKeyResponse:
        """One live key."""
        await self._admit(context)
        return pb.GetApiKeyResponse(api_key=_key(await self._keys.get_key(request.project_id, request.api_key_id)))

    async def UpdateApiKey(  # noqa: N802
        self, request: pb.UpdateApiKeyRequest, context: Context
    ) -> pb.UpdateApiKeyResponse:
        """Changes scopes and expiry of a key."""
        await self._admit(context)
        expires = request.expires_in_seconds if request.HasField("expires_in_seconds") else None
        scopes = list(request.scopes) or None
        capture = request.capture if request.HasField("capture") else None
        key = await self._keys.update_key(request.project_id, request.api_key_id, scopes, expires, capture=capture)
        return pb.UpdateApiKeyResponse(api_key=_key(key))

    async def DeleteApiKey(  # noqa: N802
        self, request: pb.DeleteApiKeyRequest, context: Context
    ) -> pb.DeleteApiKeyResponse:
        """Ends a key at once."""
        await self._admit(context)
        await self._keys.revoke_key(request.project_id, request.api_key_id)
        return pb.DeleteApiKeyResponse(api_key_id=request.api_key_id)

    async def RotateApiKey(  # noqa: N802
        self, request: pb.RotateApiKeyRequest, context: Context
    ) -> pb.RotateApiKeyResponse:
        """Makes a key like the old one, which ends after the overlap."""
        await self._admit(context)
        overlap = request.overlap_seconds if request.HasField("overlap_seconds") else DEFAULT_OVERLAP_SECONDS
        new = await self._keys.rotate_key(request.project_id, request.api_key_id, overlap)
        return pb.RotateApiKeyResponse(api_key=_key(new.info), value=new.key)

    async def ListAuditLogs(  # noqa: N802
        self, request: pb.ListAuditLogsRequest, context: Context
    ) -> pb.ListAuditLogsResponse:
        """Who did what, newest first."""
        await self._admit(context)
        query = AuditQuery(
            request.limit or _DEFAULT_PAGE,
            project_ids=request.project_ids,
            key_ids=request.api_key_ids,
            actions=request.actions,
            target_ids=request.target_ids,
            since=request.since if request.HasField("since") else None,
            until=request.until if request.HasField("until") else None,
        )
        page = await self._audit.list(query, request.after or None)
        return pb.ListAuditLogsResponse(audit_logs=[_line(row) for row in page.lines], has_more=page.has_more)

    async def GetOrganizationUsage(  # noqa: N802
        self, request: pb.GetOrganizationUsageRequest, context: Context
    ) -> pb.GetOrganizationUsageResponse:
        """Usage of the installation."""
        await self._admit(context)
        page = await self._usage.read(usage_query(request.range, request.group_by, usage_filter(request)))
        return pb.GetOrganizationUsageResponse(buckets=bucket_messages(page), next_page=page.next_page or "")

    async def _admit(self, context: Context) -> None:
        await self._authenticator.principal(authorization_of(context))


def _quota_changes(quotas: pb.Quotas) -> dict[str, int | float | None]:
    return {field.name: value for field, value in quotas.ListFields()}


def _project(project: Project) -> pb.Project:
    limits = {name: value for name in NAMES if (value := getattr(project.quotas, name)) is not None}
    return pb.Project(
        id=project.id,
        name=project.name,
        status="active" if project.archived_at is None else "archived",
        created_at=project.created_at,
        archived_at=project.archived_at,
        quotas=pb.Quotas(**limits),
    )


def _key(key: KeyInfo) -> pb.ApiKey:
    return pb.ApiKey(
        id=key.id,
        name=key.name,
        redacted_value=key.redacted,
        scopes=key.scopes,
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        capture=key.capture,
    )


def _line(row: AuditRow) -> pb.AuditLog:
    return pb.AuditLog(
        id=row.id,
        action=row.action,
        outcome=row.outcome,
        project_id=row.project_id or "",
        api_key_id=row.key_id or "",
        target_id=row.target_id or "",
        request_id=row.request_id,
        created_at=row.created_at,
    )
