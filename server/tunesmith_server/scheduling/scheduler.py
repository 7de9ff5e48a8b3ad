"""Owns the start of runs: picks waiting jobs, claims each for a new attempt, and has the executor launch it.

It must not know what becomes of runs; reconciler.py sees to that, also to a launch that was cut off in the middle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.core import Core
from tunesmith_server.db.tables import AttemptRow, FineTuneRow
from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors.base import Executor, Launch
from tunesmith_server.fine_tunes import events
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.ids import new_id
from tunesmith_server.scheduling import repository
from tunesmith_server.scheduling.capacity import PREFLIGHTS, RunKind, Waiting, pick

_FAILURES_PER_PASS = 100

_log = logging.getLogger(__name__)


class Scheduler:
    """One pass at a time; `may_act` is asked before each claim."""

    def __init__(self, core: Core, executor: Executor, may_act: Callable[[], bool]) -> None:
        self._core = core
        self._executor = executor
        self._may_act = may_act

    async def run_once(self) -> None:
        """Starts what may start now, and fails jobs whose base model cannot be had."""
        await self._fail_without_base()
        for job in await self._startable():
            if not self._may_act():
                return
            identity = await self._claim(job)
            if identity is not None:
                await launch(self._core, self._executor, identity)

    async def _startable(self) -> Sequence[Waiting]:
        limit = self._core.settings.max_concurrent_runs
        now = self._core.clock()
        async with self._core.database.read() as session:
            live = [RunKind(each.attempt.kind) for each in await repository.list_live(session)]
            preflights = await repository.list_waiting(session, RunKind.PREFLIGHT, now, PREFLIGHTS)
            trainings = await repository.list_waiting(session, RunKind.TRAINING, now, limit)
        waiting = [Waiting(job.id, RunKind.TRAINING) for job in trainings]
        waiting += [Waiting(job.id, RunKind.PREFLIGHT) for job in preflights]
        return pick(waiting, live, limit)

    async def _claim(self, waiting: Waiting) -> AttemptIdentity | None:
        """The new attempt, or None when the job was cancelled or claimed meanwhile."""
        now = self._core.clock()
        attempt_id = new_id("attempt-")
        preflight = waiting.kind is RunKind.PREFLIGHT
        async with self._core.database.write() as session:
            job = await jobs.get(session, waiting.job_id)
            if job is None:
                return None
            epoch = await jobs.claim(
                session,
                job.id,
                State.VALIDATING_FILES if preflight else State.QUEUED,
                State.VALIDATING_FILES if preflight else State.RUNNING,
                attempt_id=attempt_id,
                lease_expires_at=now + self._core.settings.lease_ttl_seconds,
                now=int(now),
                events=_claim_events(job, waiting.kind),
            )
            if epoch is None:
                return None
            row = AttemptRow(
                id=attempt_id,
                job_id=job.id,
                epoch=epoch,
                kind=waiting.kind.value,
                state=repository.LIVE,
                created_at=int(now),
            )
            await repository.insert_attempt(session, row)
        return AttemptIdentity(job_id=job.id, attempt_id=attempt_id, epoch=epoch)

    async def _fail_without_base(self) -> None:
        now = int(self._core.clock())
        async with self._core.database.read() as session:
            waiting = await repository.list_without_base(session, _FAILURES_PER_PASS)
        for job in waiting:
            if not self._may_act():
                return
            # Not the reason itself: it may name paths of the machine, which are the operator's business.
            message = (
                f"The base model {job.base_model_id} could not be imported; "
                "`tunesmithd models list` tells its operator why."
            )
            changes = {"error_code": "base_model_import_failed", "error_message": message, "error_param": "model"}
            async with self._core.database.write() as session:
                await jobs.transition(
                    session,
                    job.id,
                    {State(job.state)},
                    State.FAILED,
                    lease=None,
                    now=now,
                    events=[events.failure("base_model_import_failed", message, "model")],
                    changes={**changes, "finished_at": now},
                )


async def launch(core: Core, executor: Executor, identity: AttemptIdentity) -> None:
    """Has the run started unless it exists; an executor that cannot now is asked again by the reconciler."""
    token = core.signer.attempt_token(identity)
    address = core.settings.resolved_grpc_address
    try:
        await executor.ensure(Launch(attempt_id=identity.attempt_id, token=token, control_plane=address))
    except UnavailableError as error:
        _log.warning("attempt %s of %s cannot be launched now", identity.attempt_id, identity.job_id, exc_info=error)


def _claim_events(job: FineTuneRow, kind: RunKind) -> list[events.NewEvent]:
    tried_again = bool(job.retries)
    if kind is RunKind.TRAINING:
        return [events.started(again=tried_again)]
    return [] if tried_again else [events.validating(job.training_file_id, job.validation_file_id)]
