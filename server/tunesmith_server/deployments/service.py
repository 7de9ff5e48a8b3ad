"""Owns what users can do with deployments: make, change, roll back, list, end.

It must not know transports, nor how gateways switch.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import DeploymentRow
from tunesmith_server.deployments import repository
from tunesmith_server.deployments.schemas import (
    CreateDeployment,
    DeploymentList,
    DeploymentObject,
    ServedTarget,
    Target,
    UpdateDeployment,
    VersionObject,
    VersionPage,
)
from tunesmith_server.errors import ConflictError, InvalidRequestError, NotFoundError
from tunesmith_server.paging import check_limit
from tunesmith_server.registry import repository as registry
from tunesmith_server.registry.service import RegistryService

MAX_DEPLOYMENTS = 100
"""Per project: every gateway keeps them all in mind."""


class DeploymentsService:
    """Deployments of one project at a time."""

    def __init__(self, core: Core, models: RegistryService) -> None:
        self._core = core
        self._models = models

    async def create(self, principal: Principal, request: CreateDeployment) -> DeploymentObject:
        """Makes a deployment; raises InvalidRequestError, or ConflictError where the name stands for something else."""
        _check(request.targets)
        project_id, now = principal.project_id, int(self._core.clock())
        async with self._core.database.write() as session:
            version = await registry.next_version(session)
            row = await repository.find(session, project_id, request.name)
            if row is not None and row.deleted_at is None:
                if (row.targets, row.pinned) == (_stored(request.targets), request.pinned):
                    return await self._shown(session, principal, row)  # asked again, because the answer was lost
                message = f"There is a deployment {request.name!r} already. Change it, or take another name."
                raise ConflictError("deployment_exists", message, param="name")
            if await registry.find_base_model(session, request.name) is not None:
                message = f"{request.name!r} is a base model here. Take another name."
                raise ConflictError("deployment_name_taken", message, param="name")
            if await repository.count(session, project_id) >= MAX_DEPLOYMENTS:
                message = f"A project may have {MAX_DEPLOYMENTS} deployments. Delete one that is not needed."
                raise InvalidRequestError("too_many_deployments", message)
            await self._check_models(session, principal, request.targets)
            # A name that is given again goes on with its numbers, so that a version is never two things.
            row = row or DeploymentRow(project_id=project_id, name=request.name, number=0)
            row.created_at, row.deleted_at, row.pinned, row.version = now, None, request.pinned, version
            await repository.set_targets(session, row, _stored(request.targets), now)
        self._models.changes.announce()
        return await self.get(principal, request.name)

    async def get(self, principal: Principal, name: str) -> DeploymentObject:
        """One deployment; raises NotFoundError."""
        async with self._core.database.read() as session:
            return await self._shown(session, principal, await _require(session, principal, name))

    async def list(self, principal: Principal) -> DeploymentList:
        """The project's deployments, by name."""
        async with self._core.database.read() as session:
            rows = await repository.list_all(session, principal.project_id)
            return DeploymentList(data=[await self._shown(session, principal, row) for row in rows])

    async def update(self, principal: Principal, name: str, request: UpdateDeployment) -> DeploymentObject:
        """Changes what was sent; gateways go over to new targets when those are ready. Raises as `create`."""
        if request.targets is not None:
            _check(request.targets)
        now = int(self._core.clock())
        async with self._core.database.write() as session:
            version = await registry.next_version(session)
            row = await _require(session, principal, name)
            if request.pinned is not None:
                row.pinned, row.updated_at = request.pinned, now
            if request.targets is not None and _stored(request.targets) != row.targets:
                await self._check_models(session, principal, request.targets)
                await repository.set_targets(session, row, _stored(request.targets), now)
            row.version = version
        self._models.changes.announce()
        return await self.get(principal, name)

    async def roll_back(self, principal: Principal, name: str, number: int | None) -> DeploymentObject:
        """Gives the deployment the targets of an earlier version, as a new version; None: of the one before.

        Raises NotFoundError for an unknown version, InvalidRequestError where one of its models is gone.
        """
        async with self._core.database.read() as session:
            row = await _require(session, principal, name)
            earlier = await repository.get_version(session, row, row.number - 1 if number is None else number)
        if earlier is None:
            message = f"The deployment {name!r} has no such version. List its versions and name one of them."
            raise NotFoundError("deployment_version_not_found", message, param="version")
        targets = [Target.model_validate(target) for target in earlier.targets]
        return await self.update(principal, name, UpdateDeployment(targets=targets))

    async def list_versions(
        self, principal: Principal, name: str, *, after: int | None = None, limit: int = 20
    ) -> VersionPage:
        """What the deployment stood for, newest first; raises NotFoundError or InvalidRequestError."""
        check_limit(limit)
        async with self._core.database.read() as session:
            row = await _require(session, principal, name)
            rows = await repository.list_versions(session, row, after=after, limit=limit + 1)
        data = [
            VersionObject(version=each.number, created_at=each.created_at, targets=each.targets)
            for each in rows[:limit]
        ]
        return VersionPage(data=data, has_more=len(rows) > limit)

    async def delete(self, principal: Principal, name: str) -> None:
        """Ends the name; its models stay. Raises NotFoundError."""
        async with self._core.database.write() as session:
            version = await registry.next_version(session)
            row = await _require(session, principal, name)
            await repository.end(session, row, int(self._core.clock()), version)
        self._models.changes.announce()

    async def _shown(self, session: AsyncSession, principal: Principal, row: DeploymentRow) -> DeploymentObject:
        return DeploymentObject(
            name=row.name,
            created_at=row.created_at,
            updated_at=row.updated_at,
            version=row.number,
            targets=[
                ServedTarget(**target, state=await self._state(session, principal, target["model"]))
                for target in row.targets
            ],
            pinned=row.pinned,
        )

    async def _state(self, session: AsyncSession, principal: Principal, model: str) -> str:
        revision = await registry.revision_of(session, principal.project_id, model)
        return "not_loaded" if revision is None else (await self._models.replicas.seen(session, revision)).state

    async def _check_models(self, session: AsyncSession, principal: Principal, targets: Sequence[Target]) -> None:
        for index, target in enumerate(targets):
            if await registry.revision_of(session, principal.project_id, target.model) is None:
                message = f"The model {target.model!r} does not exist or your project has no access to it."
                raise InvalidRequestError("model_not_found", message, param=f"targets[{index}].model")


async def _require(session: AsyncSession, principal: Principal, name: str) -> DeploymentRow:
    row = await repository.find(session, principal.project_id, name) if "\0" not in name else None
    if row is None or row.deleted_at is not None:
        message = f"There is no deployment {name[:80]!r} in your project."
        raise NotFoundError("deployment_not_found", message, param="name")
    return row


def _check(targets: Sequence[Target]) -> None:
    if len({target.model for target in targets}) < len(targets):
        message = "A model stands twice in `targets`. Name it once, with the sum of its weights."
        raise InvalidRequestError("duplicate_target", message, param="targets")
    if not any(target.weight for target in targets):
        message = "No target has a weight above 0, so nobody would answer. Give one of them a weight."
        raise InvalidRequestError("no_weighted_target", message, param="targets")


def _stored(targets: Sequence[Target]) -> list[dict[str, object]]:
    return [target.model_dump() for target in targets]
