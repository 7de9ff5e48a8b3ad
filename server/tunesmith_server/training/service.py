"""Owns what a run may read and write of its own job; every write holds only while its attempt owns the job.

It must not know how runs are started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.core import Core
from tunesmith_server.db.tables import BaseModelRow, FileRow, FineTuneRow, RevisionRow
from tunesmith_server.errors import FencedError, UnavailableError
from tunesmith_server.failpoints import reach
from tunesmith_server.files import repository as files
from tunesmith_server.fine_tunes import events
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.fine_tunes.views import chooses_devices
from tunesmith_server.registry import repository as registry_repository
from tunesmith_server.registry.manifest import ArtifactKind
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.training import accounting, deliveries, imports, preflights, reports, repository, results, spec
from tunesmith_server.training.fallback import step_back
from tunesmith_server.training.outcomes import Cause, Ending
from tunesmith_server.training.ownership import amend, owned
from tunesmith_server.training.settlement import finish_cancelled, settle


def _nobody() -> None:
    """Stands where no scheduler runs in this process."""


class TrainingService:
    """The control plane as runs see it. All methods raise FencedError for an attempt that is no longer current."""

    def __init__(self, core: Core, registry: RegistryService, wake: Callable[[], None] = _nobody) -> None:
        self._core = core
        self._registry = registry
        self._wake = wake

    async def get_spec(self, identity: AttemptIdentity) -> pb.TrainingSpec:
        """What the run is to do. A job whose file was deleted meanwhile fails here."""
        async with self._core.database.write() as session:
            job = await owned(session, identity)
            training_file = await files.get(session, job.project_id, job.training_file_id)
            validation_file = None
            if job.validation_file_id is not None:
                validation_file = await files.get(session, job.project_id, job.validation_file_id)
            missing = _missing_param(job, training_file, validation_file)
            if missing is not None:
                await settle(session, job, identity.attempt_id, [_file_deleted(missing)], self._now())
            elif job.progress is None:
                # The reconciler takes it as proof that the run was launched.
                changes: dict[str, Any] = {"progress": reports.starting((job.resolved or {}).get("total_steps", 0))}
                if job.kind == jobs.IMPORT:
                    # From now on the base is this one, whatever is imported under its name meanwhile.
                    changes["resolved"] = {"base_revision": await _base_revision(session, job)}
                await amend(session, identity, self._now(), changes=changes)
                await accounting.begin(session, identity.attempt_id, self._now())
        if training_file is None or missing is not None:
            raise FencedError
        if job.kind == jobs.IMPORT:
            return await imports.build_spec(self._core, self._registry, identity, training_file)
        return await self._build_spec(identity, job, training_file, validation_file)

    async def heartbeat(self, identity: AttemptIdentity, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        """Extends the lease and says what the run shall do. A sequence number seen before delivers nothing again."""
        async with self._core.database.write() as session:
            standing = await self._record(session, identity, request)
            if standing.epoch != identity.epoch:
                raise FencedError  # and nothing was written
            reach("heartbeat.writing")
        reach("heartbeat.written")
        return pb.HeartbeatResponse(command=_command(standing), lease_ttl_seconds=self._core.settings.lease_ttl_seconds)

    async def create_uploads(
        self, identity: AttemptIdentity, request: pb.CreateUploadsRequest
    ) -> pb.CreateUploadsResponse:
        """Presigned PUTs below the attempt's own prefix; raises InvalidRequestError for paths that lead elsewhere."""
        checked = deliveries.checked_files(request.files)
        async with self._core.database.read() as session:
            await owned(session, identity)
        response = pb.CreateUploadsResponse()
        for file in checked:
            key = f"{spec.attempt_prefix(identity)}/{file.path}"
            ttl = self._core.settings.url_ttl_seconds
            signed = await self._core.store.presign_put(key, ttl, size=file.size, sha256=file.sha256)
            response.uploads.append(pb.Upload(path=file.path, url=signed.url, headers=dict(signed.headers)))
        return response

    async def commit_checkpoint(self, identity: AttemptIdentity, request: pb.CommitCheckpointRequest) -> str:
        """See results.commit_checkpoint."""
        return await results.commit_checkpoint(self._core, self._registry, identity, request)

    async def complete_preflight(self, identity: AttemptIdentity, request: pb.CompletePreflightRequest) -> None:
        """Moves the job on with every number set: to queued, or to paused where it is not to start by itself.

        Raises InvalidRequestError when a number is missing or the rejects are not what they are said to be.
        """
        rejects = await preflights.verified_rejects(self._core.store, identity, request.report)
        now = self._now()
        cancelled = False
        async with self._core.database.write() as session:
            job = await jobs.get(session, identity.job_id)
            if job is not None and job.epoch == identity.epoch and job.lease_token is None and job.resolved:
                return  # said before
            job = await owned(session, identity)
            if job.cancel_requested:
                cancelled = await finish_cancelled(session, job, identity.attempt_id, now) is not None
            else:
                kept = await preflights.keep(session, job, identity, request.report, rejects, now)
                await self._move_on(session, job, identity, request, kept)
            reach("preflight.writing")
        reach("preflight.written")
        self._wake()
        if cancelled:
            raise FencedError

    async def complete_training(self, identity: AttemptIdentity, request: pb.CompleteTrainingRequest) -> str:
        """See results.complete_training."""
        name = await results.complete_training(self._core, self._registry, identity, request)
        self._wake()
        return name

    async def complete_import(self, identity: AttemptIdentity, request: pb.CompleteImportRequest) -> str:
        """See imports.complete_import."""
        name = await imports.complete_import(self._core, self._registry, identity, request)
        self._wake()
        return name

    async def fail_run(self, identity: AttemptIdentity, request: pb.FailRunRequest) -> None:
        """Ends the attempt by what its run says: the job fails, waits for another try or is cancelled."""
        rejects = await preflights.verified_rejects(self._core.store, identity, request.report)
        now = self._now()
        async with self._core.database.write() as session:
            job = await jobs.get(session, identity.job_id)
            if job is not None and job.epoch == identity.epoch and job.lease_token is None:
                return  # said before, or noticed by the reconciler
            job = await owned(session, identity)
            if request.HasField("report"):
                kept = await preflights.keep(session, job, identity, request.report, rejects, now)
                await amend(session, identity, now, changes=kept)
            endings = await step_back(session, identity, reports.endings(request), now)
            await settle(session, job, identity.attempt_id, endings, now)
            reach("failure.writing")
        reach("failure.written")
        self._wake()

    async def _build_spec(
        self, identity: AttemptIdentity, job: FineTuneRow, training_file: FileRow, validation_file: FileRow | None
    ) -> pb.TrainingSpec:
        async with self._core.database.read() as session:
            start = await _start(session, job)
            base_revision = await _base_revision(session, job)
            newest = await repository.resumable_checkpoints(session, job.id, before_epoch=identity.epoch, limit=1)
            checkpoint = newest[0] if newest else None
            revision = await registry_repository.get_revision(session, checkpoint.revision) if checkpoint else None
        inputs = spec.Inputs(
            job=job,
            training_file=training_file,
            validation_file=validation_file,
            base_revision=base_revision,
            base_files=await self._registry.revision_files(base_revision),
            start_kind=ArtifactKind(start.kind) if start else None,
            start_files=await self._registry.revision_files(start.id) if start else [],
            checkpoint=checkpoint,
            checkpoint_files=[*revision.files, *checkpoint.training_state] if checkpoint and revision else [],
        )
        return await spec.build(identity, inputs, self._core.store, self._core.settings)

    async def _record(
        self, session: AsyncSession, identity: AttemptIdentity, request: pb.HeartbeatRequest
    ) -> jobs.Standing:
        now = self._core.clock()
        renewed = {"lease_expires_at": now + self._core.settings.lease_ttl_seconds}
        told = renewed | {"last_sequence": request.sequence, "progress": reports.progress(request, now)}
        metrics = [reports.step_metrics(message, int(now)) for message in request.metrics]
        known = await repository.known_steps(session, identity.job_id, metrics)
        # A resumed run repeats the steps after its checkpoint; the history shows each step once.
        lines = [
            events.step(reports.public_metrics(message), request.total_steps)
            for message in request.metrics
            if message.step not in known
        ]
        lines += [reports.run_event(message) for message in request.events]
        # One write tells it all and asks who owns the job, so that of two equal heartbeats at the same moment one
        # waits and then is the repeated one.
        standing = await jobs.amend(
            session,
            identity.job_id,
            lease=identity.attempt_id,
            now=int(now),
            events=lines,
            changes=told,
            newer_than_sequence=request.sequence,
        )
        if standing is None:
            return await amend(session, identity, int(now), changes=renewed)
        await repository.upsert_metrics(session, identity.job_id, metrics)
        return standing

    async def _move_on(
        self,
        session: AsyncSession,
        job: FineTuneRow,
        identity: AttemptIdentity,
        request: pb.CompletePreflightRequest,
        kept: dict[str, Any],
    ) -> None:
        to, news = _after_preflight(job)
        lines = [reports.run_event(warning) for warning in request.warnings]
        if request.report.resolved:
            lines.append(events.resolved(preflights.resolved(request.report)))
        lines.append(news)
        changes = {
            **kept,
            "lease_token": None,
            "lease_expires_at": None,
            "progress": None,
            "devices": max(1, request.devices) if chooses_devices(job) else job.devices,
            "resolved": reports.resolved(request, job.requested)
            | {"base_revision": await _base_revision(session, job)},
        }
        if not await jobs.transition(
            session,
            job.id,
            {State.VALIDATING_FILES},
            to,
            lease=identity.attempt_id,
            now=self._now(),
            events=lines,
            changes=changes,
            auto_start=job.auto_start,
        ):
            # Its user may have paused or resumed it in this very moment: then that decides where it goes.
            changed = await owned(session, identity)
            if changed.auto_start == job.auto_start:
                raise FencedError
            await self._move_on(session, changed, identity, request, kept)

    def _now(self) -> int:
        return int(self._core.clock())


def _command(standing: jobs.Standing) -> pb.Command.ValueType:
    """What the run of the job shall do now."""
    if standing.cancel_requested:
        return pb.COMMAND_STOP
    if standing.state == State.PAUSING or standing.preempt_requested:
        return pb.COMMAND_PAUSE
    return pb.COMMAND_UNSPECIFIED


def _after_preflight(job: FineTuneRow) -> tuple[State, events.NewEvent]:
    """An estimate is complete, a job without auto_start waits for its user, any other one for a machine."""
    if job.kind == "estimate":
        return State.PAUSED, events.estimated()
    if not job.auto_start:
        return State.PAUSED, events.validated_and_waiting(job.id)
    return State.QUEUED, events.validated()


async def _start(session: AsyncSession, job: FineTuneRow) -> RevisionRow | None:
    """The tuned model that the job goes on from."""
    return await registry_repository.get_revision(session, job.start_revision) if job.start_revision else None


async def _base_revision(session: AsyncSession, job: FineTuneRow) -> str:
    """The base model's revision, the same one from preflight to the last attempt, whatever is imported meanwhile."""
    if job.resolved is not None:
        return str(job.resolved["base_revision"])
    start = await _start(session, job)
    if start is not None:
        return start.base_revision
    base = await session.get(BaseModelRow, job.base_model_id)
    if base is None or base.revision is None:
        message = f"The base model {job.base_model_id} is not imported yet. Try again in a moment."
        raise UnavailableError("base_model_importing", message)
    return base.revision


def _missing_param(job: FineTuneRow, training_file: FileRow | None, validation_file: FileRow | None) -> str | None:
    if training_file is None:
        return "file" if job.kind == jobs.IMPORT else "training_file"
    if job.validation_file_id is not None and validation_file is None:
        return "validation_file"
    return None


def _file_deleted(param: str) -> Ending:
    message = f"The {param.replace('_', ' ')} was deleted before it was read. Upload it again and start over."
    return Ending(Cause.USER, "file_not_found", message, param)
