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
from tunesmith_server.errors import FencedError, InvalidRequestError
from tunesmith_server.failpoints import reach
from tunesmith_server.fine_tunes import events
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.references import ADAPTER_SETTINGS
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.fine_tunes.views import tuned_name
from tunesmith_server.registry import repository as registry_repository
from tunesmith_server.registry.repository import Revision
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.training import deliveries, spec
from tunesmith_server.training.ownership import owned
from tunesmith_server.training.settlement import finish_cancelled


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
        job = await jobs.get(session, identity.job_id)
        if job is not None and job.state == State.SUCCEEDED and job.epoch == identity.epoch and job.fine_tuned_model:
            return job.fine_tuned_model
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
    name = await _write(core, identity, request, revision)
    registry.changes.announce()
    return name


async def _write(core: Core, identity: AttemptIdentity, request: pb.CompleteImportRequest, revision: Revision) -> str:
    now = int(core.clock())
    async with core.database.write() as session:
        job = await owned(session, identity)
        cancelled = job.cancel_requested
        if cancelled:
            await finish_cancelled(session, job, identity.attempt_id, now)
        else:
            await _succeed(session, job, identity, request, revision, now)
        reach("import.writing")
    reach("import.written")
    if cancelled:
        raise FencedError
    return tuned_name(job)


async def _succeed(
    session: AsyncSession,
    job: FineTuneRow,
    identity: AttemptIdentity,
    request: pb.CompleteImportRequest,
    revision: Revision,
    now: int,
) -> None:
    name = tuned_name(job)
    changes = {
        "lease_token": None,
        "lease_expires_at": None,
        "fine_tuned_model": name,
        "revision": revision.id,
        "resolved": {"base_revision": revision.base_revision, **_adapter(request.adapter)},
        "finished_at": now,
    }
    await registry_repository.record_revision(session, revision, now)
    if not await jobs.transition(
        session,
        job.id,
        {State.VALIDATING_FILES},
        State.SUCCEEDED,
        lease=identity.attempt_id,
        now=now,
        events=[events.model_created(name), events.completed()],
        changes=changes,
    ):
        raise FencedError
    await registry_repository.publish_model(
        session,
        name=name,
        project_id=job.project_id,
        job_id=job.id,
        revision_id=revision.id,
        checkpoint=False,
        now=now,
    )


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
