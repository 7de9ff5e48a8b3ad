"""Owns imports as their runs see them: what one is to do, and the one write by which what it made becomes a model.

It must not know how bytes are verified (registry) or what the user asked for.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FileRow, FineTuneRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.failpoints import reach
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.references import ADAPTER_SETTINGS
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.registry import repository as registry_repository
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.training import deliveries, spec
from tunesmith_server.training.ownership import owned
from tunesmith_server.training.success import finish, finished_before, succeed


async def build_spec(
    core: Core, registry: RegistryService, identity: AttemptIdentity, archive: FileRow
) -> pb.TrainingSpec:
    """What the run is to do. Raises FencedError for an attempt that is no longer current."""
    async with core.database.read() as session:
        job = await owned(session, identity)
    revision = _base_revision(job)
    base = spec.base_model(job.base_model_id, revision, await registry.revision_files(revision))
    return await spec.build_import(identity, archive, base, core.store, core.settings)


async def complete_import(
    core: Core, registry: RegistryService, identity: AttemptIdentity, request: pb.CompleteImportRequest
) -> str:
    """Makes the artifact a model and returns its name; repeated, it returns the same.

    Raises InvalidRequestError when the uploaded bytes are not what they are said to be or could not be served.
    """
    async with core.database.read() as session:
        if name := await finished_before(session, identity):
            return name
        job = await owned(session, identity)
    if job.kind != jobs.IMPORT:
        raise InvalidRequestError("not_an_import", "Only the run of an import ends by CompleteImport.")
    revision = await registry.promote(
        kind=deliveries.checked_artifact(request.artifact, None),
        prefix=f"{spec.attempt_prefix(identity)}/{request.artifact.prefix}",
        files=deliveries.checked_files(request.artifact.files),
        base_model_id=job.base_model_id,
        base_revision=_base_revision(job),
        max_lora_rank=core.settings.max_lora_rank,
    )

    async def write(session: AsyncSession, job: FineTuneRow, now: int) -> None:
        await registry_repository.record_revision(session, revision, now)
        resolved = {"base_revision": revision.base_revision, **_adapter(request.adapter)}
        changes = {"resolved": resolved}
        await succeed(session, job, identity.attempt_id, revision.id, {State.VALIDATING_FILES}, changes, now)
        reach("import.writing")

    name = await finish(core, identity, write)
    reach("import.written")
    registry.changes.announce()
    return name


def _base_revision(job: FineTuneRow) -> str:
    return str((job.resolved or {})["base_revision"])


def _adapter(message: pb.Hyperparameters) -> dict[str, Any]:
    """What a job that goes on from the model must know of its adapter."""
    numbers = {
        field.name: list(value) if field.is_repeated else value
        for field, value in message.ListFields()
        if field.name in ADAPTER_SETTINGS
    }
    return {name: value for name, value in numbers.items() if value}
