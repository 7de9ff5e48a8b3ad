"""Owns who else may prompt a checkpoint: giving, listing and taking back.

It must not know transports or gateways. Callers hold the scope `admin`, which reaches every project of the
installation (projects/scopes.py); so a checkpoint is looked up by its name alone.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.core import Core
from tunesmith_server.db.tables import CheckpointPermissionRow, CheckpointRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.fine_tunes import permission_repository as repository
from tunesmith_server.fine_tunes.permission_schemas import CreatePermissions, PermissionObject, PermissionPage
from tunesmith_server.ids import new_id
from tunesmith_server.paging import check_limit, is_id, unknown_cursor
from tunesmith_server.registry import repository as registry


class PermissionsService:
    """Permissions of checkpoints. `announce` tells gateways that a model's users have changed."""

    def __init__(self, core: Core, announce: Callable[[], None]) -> None:
        self._core = core
        self._announce = announce

    async def create(self, checkpoint: str, request: CreatePermissions) -> PermissionPage:
        """Lets the projects prompt the checkpoint; those that may already keep the permission that they have.

        Raises NotFoundError for the checkpoint, InvalidRequestError (`project_not_found`) for a project.
        """
        now = int(self._core.clock())
        wanted = list(dict.fromkeys(request.project_ids))
        async with self._core.database.write() as session:
            await registry.hold_changes(session)  # so that the checkpoint is not retired meanwhile
            found = await _require_checkpoint(session, checkpoint)
            unknown = await repository.unknown_projects(session, wanted)
            if unknown:
                message = f"There is no project {unknown[0]!r}. Nothing was shared; send ids of projects."
                raise InvalidRequestError("project_not_found", message, param="project_ids")
            for project_id in wanted:
                row = CheckpointPermissionRow(
                    id=new_id("cp_"), checkpoint_id=found.id, project_id=project_id, created_at=now
                )
                await repository.insert(session, row)
            await registry.touch_model(session, found.model_name)
            rows = [
                row
                for project_id in wanted
                for row in await repository.list_page(
                    session, found.id, repository.PermissionQuery(limit=1, project_id=project_id)
                )
            ]
        self._announce()
        return _page(rows, len(rows))

    async def list(
        self,
        checkpoint: str,
        *,
        project_id: str | None = None,
        after: str | None = None,
        limit: int = 10,
        order: str = "descending",
    ) -> PermissionPage:
        """Who may prompt the checkpoint; raises NotFoundError, or InvalidRequestError for a bad cursor or order."""
        check_limit(limit)
        if order not in ("ascending", "descending"):
            raise InvalidRequestError("invalid_value", "`order` must be ascending or descending.", param="order")
        async with self._core.database.read() as session:
            found = await _require_checkpoint(session, checkpoint)
            cursor = None
            if after is not None:
                cursor = await repository.get(session, found.id, after) if is_id(after) else None
                if cursor is None:
                    raise unknown_cursor(after)
            query = repository.PermissionQuery(limit + 1, cursor, order == "ascending", project_id or "")
            rows = await repository.list_page(session, found.id, query)
        return _page(rows, limit)

    async def delete(self, checkpoint: str, permission_id: str) -> None:
        """Takes a permission back; raises NotFoundError."""
        async with self._core.database.write() as session:
            found = await _require_checkpoint(session, checkpoint)
            if not is_id(permission_id) or not await repository.remove(session, found.id, permission_id):
                message = f"The checkpoint has no permission {permission_id[:80]!r}."
                raise NotFoundError("permission_not_found", message, param="permission_id")
            await registry.touch_model(session, found.model_name)
        self._announce()


async def _require_checkpoint(session: AsyncSession, model_name: str) -> CheckpointRow:
    found = await repository.find_checkpoint(session, model_name) if model_name.isprintable() else None
    if found is None:
        message = f"There is no checkpoint {model_name[:200]!r}. A job's checkpoints tell their names."
        raise NotFoundError("checkpoint_not_found", message, param="fine_tuned_model_checkpoint")
    return found


def _page(rows: list[CheckpointPermissionRow], limit: int) -> PermissionPage:
    data = [PermissionObject(id=row.id, created_at=row.created_at, project_id=row.project_id) for row in rows[:limit]]
    return PermissionPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(rows) > limit,
    )
