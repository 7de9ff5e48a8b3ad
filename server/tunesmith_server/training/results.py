"""Owns how uploaded bytes become checkpoints and the final model: verified outside of any transaction, then one write.

It must not know how bytes are verified (registry) or how runs are started.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.core import Core
from tunesmith_server.db.tables import CheckpointRow, FileRow, FineTuneRow, RevisionRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.failpoints import reach
from tunesmith_server.files import repository as files
from tunesmith_server.fine_tunes import events
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.fine_tunes.views import tuned_name
from tunesmith_server.ids import new_id
from tunesmith_server.registry import repository as registry_repository
from tunesmith_server.registry.manifest import ManifestFile
from tunesmith_server.registry.repository import Revision
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.training import accounting, deliveries, reports, repository
from tunesmith_server.training.ownership import amend, owned
from tunesmith_server.training.spec import attempt_prefix
from tunesmith_server.training.success import finish, finished_before, succeed

_STEPS_FILE = "results.csv"
_TRAINING_STATES = frozenset({State.RUNNING, State.PAUSING})


async def commit_checkpoint(
    core: Core, registry: RegistryService, identity: AttemptIdentity, request: pb.CommitCheckpointRequest
) -> str:
    """Makes the checkpoint exist and returns its model name; a step that was committed before stays as it is.

    Only where that one is damaged or not kept any more, this one takes its place and its name.
    Raises InvalidRequestError when the uploaded bytes are not what they are said to be or could not be served.
    """
    async with core.database.read() as session:
        job = await owned(session, identity)
        known = await repository.find_checkpoint(session, job.id, request.step)
    if known is not None and known.damaged_at is None and known.removed_at is None:
        return known.model_name
    if job.state not in _TRAINING_STATES or request.step < 1:
        raise InvalidRequestError("invalid_checkpoint", "Only a training run has checkpoints, from step 1 on.")
    revision, row = await _verified_checkpoint(core, registry, identity, job, request, mend=known is not None)
    reach("checkpoint.verified")
    try:
        await _write_checkpoint(core, identity, job, revision, row)
    except _CommittedError:
        # The same call, repeated while the first one was still verifying, has been faster.
        return row.model_name
    reach("checkpoint.written")
    registry.changes.announce()
    return row.model_name


async def complete_training(
    core: Core, registry: RegistryService, identity: AttemptIdentity, request: pb.CompleteTrainingRequest
) -> str:
    """Ends the job as succeeded and returns the model name; repeated, it returns the same.

    The artifact must be that of a committed checkpoint: it was verified then, and nothing is uploaded twice.
    """
    async with core.database.read() as session:
        if name := await finished_before(session, identity):
            return name
        job = await owned(session, identity)
        checkpoint = await repository.find_checkpoint(session, job.id, request.step)
        revision = await registry_repository.get_revision(session, checkpoint.revision) if checkpoint else None
    if checkpoint is None or checkpoint.removed_at or checkpoint.damaged_at or revision is None:
        raise InvalidRequestError("checkpoint_not_committed", f"Commit the checkpoint of step {request.step} first.")
    if request.HasField("artifact"):
        _require_same(request, job, revision)
    results = deliveries.checked_files(request.result_files)
    await deliveries.require_identical(core.store, attempt_prefix(identity), results)
    reach("success.verified")

    async def write(session: AsyncSession, job: FineTuneRow, now: int) -> None:
        await _write_success(session, job, identity, request, revision.id, results, now)
        reach("success.writing")

    name = await finish(core, identity, write)
    reach("success.written")
    registry.changes.announce()
    return name


def result_file(job: FineTuneRow, prefix: str, file: ManifestFile, now: int) -> FileRow:
    """A file of the project that holds what a run uploaded below `prefix`."""
    return FileRow(
        id=new_id("file-"),
        project_id=job.project_id,
        filename=file.path.rpartition("/")[2],
        purpose="fine-tune-results",
        bytes=file.size,
        sha256=file.sha256,
        status="processed",
        storage_key=f"{prefix}/{file.path}",
        created_at=now,
    )


def _require_same(request: pb.CompleteTrainingRequest, job: FineTuneRow, revision: RevisionRow) -> None:
    deliveries.checked_artifact(request.artifact, job.requested["weights"])
    declared = deliveries.checked_files(request.artifact.files)
    if {file.path: file.sha256 for file in declared} != {file["path"]: file["sha256"] for file in revision.files}:
        message = f"The artifact is not the committed checkpoint of step {request.step}."
        raise InvalidRequestError("artifact_not_committed", message)


async def _verified_checkpoint(
    core: Core,
    registry: RegistryService,
    identity: AttemptIdentity,
    job: FineTuneRow,
    request: pb.CommitCheckpointRequest,
    *,
    mend: bool,
) -> tuple[Revision, CheckpointRow]:
    kind = deliveries.checked_artifact(request.artifact, job.requested["weights"])
    prefix = f"{attempt_prefix(identity)}/{request.artifact.prefix}"
    training_state = deliveries.checked_files(request.artifact.training_state)
    await deliveries.require_stored(core.store, prefix, training_state)
    revision = await registry.promote(
        kind=kind,
        prefix=prefix,
        files=deliveries.checked_files(request.artifact.files),
        base_model_id=job.base_model_id,
        base_revision=job.resolved["base_revision"] if job.resolved else "",
        max_lora_rank=core.settings.max_lora_rank,
        mend=mend,
    )
    name = f"{tuned_name(job)}:ckpt-step-{request.step}"
    now = int(core.clock())
    row = CheckpointRow(
        id=new_id("ftckpt_"),
        job_id=job.id,
        step=request.step,
        epoch=identity.epoch,
        prefix=prefix,
        training_state=[asdict(file) for file in training_state],
        revision=revision.id,
        model_name=name,
        metrics=reports.public_metrics(request.metrics) | {"step": request.step},
        created_at=now,
    )
    return revision, row


class _CommittedError(Exception):
    """The step has a sound checkpoint that is kept."""


async def _write_checkpoint(
    core: Core,
    identity: AttemptIdentity,
    job: FineTuneRow,
    revision: Revision,
    row: CheckpointRow,
) -> None:
    async with core.database.write() as session:
        line = events.checkpoint_created(row.step, row.model_name)
        await amend(session, identity, row.created_at, events=[line])
        await registry_repository.record_revision(session, revision, row.created_at)
        # Read once nobody else can retire it.
        replaced = await repository.find_checkpoint(session, job.id, row.step)
        if not await repository.put_checkpoint(session, row):
            raise _CommittedError
        if replaced is not None and replaced.removed_at is not None:
            await registry_repository.revive_model(session, row.model_name, replaced.removed_at)
        await registry_repository.publish_model(
            session,
            name=row.model_name,
            project_id=job.project_id,
            job_id=job.id,
            revision_id=revision.id,
            checkpoint=True,
            now=row.created_at,
        )
        if replaced is not None:
            await registry_repository.retire_revisions(session, {replaced.revision}, row.created_at)
        reach("checkpoint.writing")


async def _write_success(
    session: AsyncSession,
    job: FineTuneRow,
    identity: AttemptIdentity,
    request: pb.CompleteTrainingRequest,
    revision_id: str,
    results: Sequence[ManifestFile],
    now: int,
) -> None:
    # Clients take the first for the numbers of the steps.
    ordered = sorted(results, key=lambda file: file.path != _STEPS_FILE)
    rows = [result_file(job, attempt_prefix(identity), file, now) for file in ordered]
    live = await accounting.spent_by(session, identity.attempt_id, now)
    changes = {
        **accounting.charged(job, live),
        "evaluation": reports.evaluation(request.evaluation, request.step) if request.HasField("evaluation") else None,
        # What a preflight rejected comes behind.
        "result_file_ids": [*(row.id for row in rows), *job.result_file_ids],
        "trained_tokens": request.trained_tokens,
    }
    await succeed(session, job, identity.attempt_id, revision_id, _TRAINING_STATES, changes, now)
    await accounting.record(session, job, live, now, request.trained_tokens)
    for row in rows:
        await files.insert(session, row)
