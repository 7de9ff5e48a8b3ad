"""Owns the REST routes of operators: projects, their keys, quotas and rate limits.

It must not know rules or SQL; administration.py and service.py decide.
"""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from tunesmith_server.errors import NotFoundError
from tunesmith_server.http_auth import CurrentPrincipal
from tunesmith_server.projects.administration import Administration, Project, ProjectPage
from tunesmith_server.projects.schemas import (
    CreateKey,
    CreateProject,
    DeletedKey,
    KeyList,
    KeyObject,
    NewKeyObject,
    ProjectList,
    ProjectObject,
    QuotasObject,
    RateLimitList,
    RateLimitObject,
    RotateKey,
    UpdateKey,
    UpdateProject,
    UpdateRateLimit,
)
from tunesmith_server.projects.scopes import PROJECT
from tunesmith_server.projects.service import DEFAULT_OVERLAP_SECONDS, KeyInfo, NewKey, ProjectsService

_PROJECTS = "/v1/organization/projects"


def create_routers(administration: Administration, keys: ProjectsService) -> list[APIRouter]:
    """Routes under /v1/organization/projects."""
    return [_projects_router(administration), _keys_router(keys), _rate_limits_router(administration)]


def _projects_router(administration: Administration) -> APIRouter:
    router = APIRouter(prefix=_PROJECTS, tags=["administration"])

    @router.post("")
    async def create_project(body: CreateProject, _principal: CurrentPrincipal) -> ProjectObject:
        quotas = body.quotas.model_dump(exclude_unset=True)
        return _project(await administration.create(body.name, body.id, quotas))

    @router.get("")
    async def list_projects(
        _principal: CurrentPrincipal, after: str | None = None, limit: int = 20, include_archived: bool = False
    ) -> ProjectList:
        return _project_list(await administration.list(limit=limit, after=after, archived_too=include_archived))

    @router.get("/{project_id}")
    async def get_project(project_id: str, _principal: CurrentPrincipal) -> ProjectObject:
        return _project(await administration.get(project_id))

    @router.post("/{project_id}")
    async def update_project(project_id: str, body: UpdateProject, _principal: CurrentPrincipal) -> ProjectObject:
        quotas = body.quotas.model_dump(exclude_unset=True)
        return _project(await administration.update(project_id, name=body.name, quotas=quotas))

    @router.post("/{project_id}/archive")
    async def archive_project(project_id: str, _principal: CurrentPrincipal) -> ProjectObject:
        return _project(await administration.archive(project_id))

    return router


def _keys_router(keys: ProjectsService) -> APIRouter:
    router = APIRouter(prefix=f"{_PROJECTS}/{{project_id}}/api_keys", tags=["administration"])

    @router.post("")
    async def create_key(project_id: str, body: CreateKey, _principal: CurrentPrincipal) -> NewKeyObject:
        scopes = (PROJECT,) if body.scopes is None else body.scopes
        expires = body.expires_in_seconds
        return _new_key(await keys.create_key(project_id, body.name, scopes, expires, capture=body.capture))

    @router.get("")
    async def list_keys(
        project_id: str, _principal: CurrentPrincipal, after: str | None = None, limit: int = 20
    ) -> KeyList:
        page = await keys.page_of_keys(project_id, limit=limit, after=after)
        data = [_key(key) for key in page.keys]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return KeyList(data=data, first_id=first, last_id=last, has_more=page.has_more)

    @router.get("/{api_key_id}")
    async def get_key(project_id: str, api_key_id: str, _principal: CurrentPrincipal) -> KeyObject:
        return _key(await keys.get_key(project_id, api_key_id))

    @router.post("/{api_key_id}")
    async def update_key(project_id: str, api_key_id: str, body: UpdateKey, _principal: CurrentPrincipal) -> KeyObject:
        expires = body.expires_in_seconds
        return _key(await keys.update_key(project_id, api_key_id, body.scopes, expires, capture=body.capture))

    @router.delete("/{api_key_id}")
    async def delete_key(project_id: str, api_key_id: str, _principal: CurrentPrincipal) -> DeletedKey:
        await keys.revoke_key(project_id, api_key_id)
        return DeletedKey(id=api_key_id)

    @router.post("/{api_key_id}/rotate")
    async def rotate_key(
        project_id: str, api_key_id: str, _principal: CurrentPrincipal, body: RotateKey | None = None
    ) -> NewKeyObject:
        overlap = body.overlap_seconds if body else None
        seconds = DEFAULT_OVERLAP_SECONDS if overlap is None else overlap
        return _new_key(await keys.rotate_key(project_id, api_key_id, seconds))

    return router


def _rate_limits_router(administration: Administration) -> APIRouter:
    router = APIRouter(prefix=f"{_PROJECTS}/{{project_id}}/rate_limits", tags=["administration"])

    @router.get("")
    async def list_rate_limits(project_id: str, _principal: CurrentPrincipal) -> RateLimitList:
        limit = _rate_limit(await administration.get(project_id))
        return RateLimitList(data=[limit], first_id=limit.id, last_id=limit.id)

    @router.post("/{rate_limit_id}")
    async def update_rate_limit(
        project_id: str, rate_limit_id: str, body: UpdateRateLimit, _principal: CurrentPrincipal
    ) -> RateLimitObject:
        known = RateLimitObject.model_fields["id"].default
        if rate_limit_id != known:
            message = f"There is no rate limit {rate_limit_id[:80]!r}. A project has one, {known}."
            raise NotFoundError("rate_limit_not_found", message, param="rate_limit_id")
        names = {
            "max_requests_per_1_minute": "requests_per_minute",
            "max_tokens_per_1_minute": "tokens_per_minute",
        }
        quotas = {names[name]: value for name, value in body.model_dump(exclude_unset=True).items()}
        return _rate_limit(await administration.update(project_id, quotas=quotas))

    return router


def _project(project: Project) -> ProjectObject:
    return ProjectObject(
        id=project.id,
        name=project.name,
        created_at=project.created_at,
        archived_at=project.archived_at,
        status="active" if project.archived_at is None else "archived",
        quotas=QuotasObject(**asdict(project.quotas)),
    )


def _project_list(page: ProjectPage) -> ProjectList:
    data = [_project(project) for project in page.projects]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return ProjectList(data=data, first_id=first, last_id=last, has_more=page.has_more)


def _rate_limit(project: Project) -> RateLimitObject:
    return RateLimitObject(
        max_requests_per_1_minute=project.quotas.requests_per_minute,
        max_tokens_per_1_minute=project.quotas.tokens_per_minute,
    )


def _key(key: KeyInfo) -> KeyObject:
    return KeyObject(
        id=key.id,
        name=key.name,
        redacted_value=key.redacted,
        created_at=key.created_at,
        expires_at=key.expires_at,
        last_used_at=key.last_used_at,
        scopes=list(key.scopes),
        capture=key.capture,
    )


def _new_key(new: NewKey) -> NewKeyObject:
    return NewKeyObject(**_key(new.info).model_dump(), value=new.key)
