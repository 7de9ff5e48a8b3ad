"""Owns what can be done with models: list, read, delete, promote an artifact, hand out the files of a revision.

It must not know transports, engines or the life of a job.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import BaseModelRow, DeploymentRow, FineTuneRow, ModelRow
from tunesmith_server.deployments import repository as deployments
from tunesmith_server.errors import ConflictError, NotFoundError, PermissionDeniedError, UnavailableError
from tunesmith_server.fine_tunes.schemas import JobError
from tunesmith_server.fine_tunes.state import TERMINAL, State
from tunesmith_server.fine_tunes.views import error as error_of
from tunesmith_server.fine_tunes.views import tuned_name
from tunesmith_server.registry import claims, imports, manifest, promotion, repository
from tunesmith_server.registry.changes import ChangeFeed
from tunesmith_server.registry.manifest import ArtifactKind, ManifestFile
from tunesmith_server.registry.replicas import Replicas
from tunesmith_server.registry.repository import Revision
from tunesmith_server.registry.schemas import Status
from tunesmith_server.storage.base import ObjectNotFoundError

BASE_MODEL_OWNER = "tunesmith"

_IMPORT_RETRY_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Model:
    """A model as users see it; `created` in Unix seconds, `revision` what its name points at, "" for nothing yet."""

    id: str
    created: int
    owned_by: str
    revision: str
    status: Status = "ready"
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class SignedFile:
    """A file of a revision and a URL that reads it without further credentials."""

    path: str
    size: int
    sha256: str
    url: str


class RegistryService:
    """Models and revisions. `changes` is the feed that gateways follow, `replicas` what they say in return."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.changes = ChangeFeed(core.database)
        self.replicas = Replicas(core.database, core.clock)

    async def list_models(self, principal: Principal) -> list[Model]:
        """Every name that the project may prompt.

        Its deployments, its tuned models, newest first, then base models and aliases.
        """
        async with self._core.database.read() as session:
            tuned = await repository.list_models(session, principal.project_id)
            bases = await repository.list_base_models(session)
            named = await deployments.list_all(session, principal.project_id)
        models = [_deployed_model(row, "") for row in named]
        models += [_tuned_model(row) for row in tuned]
        aliases = {alias for row in bases for alias in row.aliases}
        for row in bases:
            if row.state == repository.READY:
                own = [] if row.id in aliases else [row.id]
                models += [_base_model(row, name) for name in (*own, *row.aliases)]
        return models

    async def get_model(self, principal: Principal, name: str) -> Model:
        """One model, one that is being imported too; raises NotFoundError, or UnavailableError for a base not there."""
        async with self._core.database.read() as session:
            named = await deployments.find(session, principal.project_id, name)
            if named is not None and named.deleted_at is None:
                # Models of one deployment are not equally far: the record tells of the one that answers most.
                most = max(named.targets, key=lambda target: target["weight"])["model"]
                revision = await repository.revision_of(session, principal.project_id, most)
                return _deployed_model(named, revision or "")
            tuned = await repository.get_model(session, principal.project_id, name)
            base = await repository.find_base_model(session, name) if tuned is None else None
            coming = await imports.find(session, principal.project_id, name) if tuned is None else None
        if tuned is not None:
            return _tuned_model(tuned)
        if coming is not None:
            return imported_model(coming)
        if base is None:
            raise _unknown(name)
        require_ready(base)
        return _base_model(base, name)

    async def delete_model(self, principal: Principal, name: str) -> None:
        """Withdraws a tuned model for good, and gives up the import of one that is not there yet.

        Raises PermissionDeniedError for a base model, ConflictError while a deployment stands for it, NotFoundError.
        """
        async with self._core.database.write() as session:
            if await repository.find_base_model(session, name) is not None:
                message = f"{name} is a base model of this installation; only its operator can remove it."
                raise PermissionDeniedError("base_model_not_deletable", message, param="model")
            await _refuse_deployed(session, principal, name)
            now = int(self._core.clock())
            # In this order: an import that has just given its name is found by the second.
            given_up = await imports.cancel(session, principal.project_id, name, now)
            if not given_up and not await repository.delete_model(session, principal.project_id, name, now):
                raise _unknown(name)
        self.changes.announce()

    async def promote(
        self,
        *,
        kind: ArtifactKind,
        prefix: str,
        files: Iterable[ManifestFile],
        base_model_id: str,
        base_revision: str,
        max_lora_rank: int,
        mend: bool = False,
    ) -> Revision:
        """Verifies what a run uploaded below `prefix` and keeps it as a revision; no transaction is open meanwhile.

        `mend`: also where the same bytes are one already, which may be damaged meanwhile.
        The sweep leaves it alone until it was recorded. Raises InvalidRequestError with code `artifact_rejected` and
        every problem found, or UnavailableError while the bytes of an earlier try are being swept.
        """
        artifact = promotion.Artifact(
            kind=kind,
            prefix=prefix,
            files=tuple(files),
            base_model_id=base_model_id,
            base_revision=base_revision,
        )
        async with self._core.database.write() as session:
            await claims.begin_promotion(session, promotion.revision_of(artifact).id, self._core.clock())
        return await promotion.promote(self._core.store, artifact, max_lora_rank, mend=mend)

    async def base_model_files(self, base_id: str) -> list[SignedFile]:
        """The files of a base model (id or alias); raises NotFoundError, or UnavailableError before it is ready."""
        async with self._core.database.read() as session:
            row = await repository.find_base_model(session, base_id)
        if row is None:
            raise _unknown(base_id)
        require_ready(row)
        files = [ManifestFile(**file) for file in row.files or ()]
        return await self._signed(f"base_models/{row.revision}", files)

    async def revision_files(self, revision: str) -> list[SignedFile]:
        """The files of a tuned or base revision; raises NotFoundError."""
        async with self._core.database.read() as session:
            row = await repository.get_revision(session, revision)
        if row is not None and row.removed_at is None:
            return await self._signed(f"revisions/{revision}", [ManifestFile(**file) for file in row.files])
        unknown = NotFoundError("revision_not_found", "There is no such revision.", param="revision")
        if not manifest.is_revision_id(revision):
            raise unknown
        try:
            base = await promotion.read_base_manifest(self._core.store, revision)
        except ObjectNotFoundError as error:
            raise unknown from error
        return await self._signed(f"base_models/{revision}", base.files)

    async def _signed(self, folder: str, files: Iterable[ManifestFile]) -> list[SignedFile]:
        store, ttl = self._core.store, self._core.settings.url_ttl_seconds
        return [
            SignedFile(
                path=file.path,
                size=file.size,
                sha256=file.sha256,
                url=(await store.presign_get(f"{folder}/{file.path}", ttl)).url,
            )
            for file in files
        ]


def imported_model(row: FineTuneRow) -> Model:
    """What an import gives, or is to give; `row` is of kind import."""
    status: Status = "importing"
    if row.state == State.SUCCEEDED:
        status = "ready"
    elif row.state in TERMINAL:
        status = "failed"
    return Model(
        id=tuned_name(row),
        created=row.created_at,
        owned_by=row.project_id,
        revision=row.revision or "",
        status=status,
        error=error_of(row),
    )


def require_ready(row: BaseModelRow) -> None:
    """Raises UnavailableError, with what to do, unless the base model's import has ended well."""
    if row.state == repository.IMPORTING:
        message = f"The base model {row.id} is still being imported. Try again in a moment."
        raise UnavailableError("base_model_importing", message, param="model", retry_after=_IMPORT_RETRY_SECONDS)
    if row.state == repository.FAILED:
        message = f"The import of the base model {row.id} failed; `tunesmithd models list` tells its operator why."
        raise UnavailableError("base_model_import_failed", message, param="model")


async def _refuse_deployed(session: AsyncSession, principal: Principal, name: str) -> None:
    """Raises ConflictError while one of the project's deployments stands for the model: nobody would answer."""
    await repository.hold_changes(session)
    deployment = await deployments.deployment_of(session, principal.project_id, name)
    if deployment is not None:
        message = f"The deployment {deployment!r} stands for this model. Give it another target or delete it first."
        raise ConflictError("model_deployed", message, param="model")


def _tuned_model(row: ModelRow | Row[Any]) -> Model:
    return Model(id=row.name, created=row.created_at, owned_by=row.project_id, revision=row.revision)


def _deployed_model(row: DeploymentRow, revision: str) -> Model:
    return Model(id=row.name, created=row.created_at, owned_by=row.project_id, revision=revision)


def _base_model(row: BaseModelRow, name: str) -> Model:
    return Model(id=name, created=row.created_at, owned_by=BASE_MODEL_OWNER, revision=row.revision or "")


def _unknown(name: str) -> NotFoundError:
    message = f"The model {name[:200]!r} does not exist or your project has no access to it."
    return NotFoundError("model_not_found", message, param="model")
