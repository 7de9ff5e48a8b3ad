"""Owns the start of runs: has the policy pick, claims each picked job for a new attempt, and has it launched.

It must not know what becomes of runs; reconciler.py sees to that, also to a launch that was cut off in the middle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from prometheus_client import Histogram
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.core import Core
from tunesmith_server.db.tables import AttemptRow, FineTuneRow
from tunesmith_server.errors import UnavailableError
from tunesmith_server.executors.base import Executor, Inventory, Launch
from tunesmith_server.failpoints import reach
from tunesmith_server.fine_tunes import events
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.ids import new_id
from tunesmith_server.scheduling import repository, snapshot
from tunesmith_server.scheduling.capacity import RunKind, Running, Start, Waiting, pick_preflights, plan
from tunesmith_server.scheduling.snapshot import Snapshot

LOOK_AHEAD = 32
"""Waiting jobs of a project that are considered beyond those that could start at once."""

_FAILURES_PER_PASS = 100
_LAUNCHES_AT_ONCE = 8
_CLAIMS_PER_COMMIT = 16

_log = logging.getLogger(__name__)
_WAIT = Histogram(
    "tunesmith_job_wait_seconds",
    "Time from the creation of a job to its first training run.",
    buckets=(1, 5, 15, 60, 300, 900, 3600, 14400, 86400),
)


async def _unfenced(_session: AsyncSession) -> bool:
    """Stands where one scheduler alone has the database."""
    return True


class Scheduler:
    """One pass at a time. `may_act` is asked before each claim, `confirm` within its transaction."""

    def __init__(
        self,
        core: Core,
        executor: Executor,
        may_act: Callable[[], bool],
        confirm: Callable[[AsyncSession], Awaitable[bool]] = _unfenced,
    ) -> None:
        self._core = core
        self._executor = executor
        self._may_act = may_act
        self._confirm = confirm
        self._preflight_served: dict[str, float] = {}

    async def run_once(self) -> None:
        """Starts what may start now, asks runs to make room, and fails jobs that can never start."""
        await self._fail_without_base()
        try:
            inventory = await self._executor.capabilities()
        except UnavailableError as error:
            _log.warning("the devices are not known now; nothing starts", exc_info=error)
            return
        now = self._core.clock()
        async with self._core.database.read() as session:
            per_project = LOOK_AHEAD + len(inventory.devices)
            queue = await snapshot.take(session, self._core.settings, now, per_project)
        await self._fail_too_big(queue, inventory)
        decided = plan(queue.waiting, queue.running, queue.projects, inventory.devices, now)
        launches = [Start(job, ()) for job in self._preflights(queue)]
        await self._start(RunKind.PREFLIGHT, launches)
        await self._start(RunKind.TRAINING, decided.starts)
        for run in decided.victims:
            await self._ask_to_make_room(run)

    def _preflights(self, queue: Snapshot) -> Sequence[Waiting]:
        room = self._core.settings.max_concurrent_preflights - queue.live_preflights
        picked = pick_preflights(queue.preflights, room, self._preflight_served)
        self._preflight_served.update({job.project_id: self._core.clock() for job in picked})
        return picked

    async def _start(self, kind: RunKind, starts: Sequence[Start]) -> None:
        """Claims a batch at a time; launches go on side by side, since some executors take their time."""
        slots = asyncio.Semaphore(_LAUNCHES_AT_ONCE)

        async def launch_when_free(identity: AttemptIdentity, devices: tuple[str, ...]) -> None:
            async with slots:
                await launch(self._core, self._executor, identity, devices)

        async with asyncio.TaskGroup() as launches:
            for first in range(0, len(starts), _CLAIMS_PER_COMMIT):
                if not self._may_act():
                    return
                for identity, devices in await self._claim(kind, starts[first : first + _CLAIMS_PER_COMMIT]):
                    launches.create_task(launch_when_free(identity, devices))

    async def _claim(self, kind: RunKind, starts: Sequence[Start]) -> Sequence[tuple[AttemptIdentity, tuple[str, ...]]]:
        """The new attempts with their devices; none for a job that was cancelled or claimed meanwhile.

        Nothing is claimed when another process leads.
        """
        now = self._core.clock()
        claimed = []
        async with self._core.database.write() as session:
            if not await self._confirm(session):
                return []
            rows = await jobs.get_many(session, [start.job.job_id for start in starts])
            for start in starts:
                job = rows.get(start.job.job_id)
                identity = None if job is None else await self._claim_one(session, job, kind, now)
                if identity is not None:
                    claimed.append((identity, start.devices))
            await repository.insert_attempts(
                session, [_attempt(identity, kind, devices, int(now)) for identity, devices in claimed]
            )
            reach("claim.writing")
        reach("claim.written")
        return claimed

    async def _claim_one(
        self, session: AsyncSession, job: FineTuneRow, kind: RunKind, now: float
    ) -> AttemptIdentity | None:
        attempt_id = new_id("attempt-")
        preflight = kind is RunKind.PREFLIGHT
        epoch = await jobs.claim(
            session,
            job.id,
            State.VALIDATING_FILES if preflight else State.QUEUED,
            State.VALIDATING_FILES if preflight else State.RUNNING,
            attempt_id=attempt_id,
            lease_expires_at=now + self._core.settings.lease_ttl_seconds,
            now=int(now),
            events=_claim_events(job, kind),
        )
        if epoch is None:
            return None
        if not preflight and not job.retries and job.run_seconds == 0:
            _WAIT.observe(now - job.created_at)
        return AttemptIdentity(job_id=job.id, attempt_id=attempt_id, epoch=epoch)

    async def _ask_to_make_room(self, run: Running) -> None:
        if not self._may_act():
            return
        async with self._core.database.write() as session:
            await jobs.amend(
                session,
                run.job_id,
                lease=run.attempt_id,
                now=int(self._core.clock()),
                events=[events.asked_to_make_room()],
                changes={"preempt_requested": True},
            )

    async def _fail_too_big(self, queue: Snapshot, inventory: Inventory) -> None:
        for job in queue.waiting:
            if job.devices > len(inventory.devices) and self._may_act():
                message = (
                    f"The job needs {job.devices} devices, but this installation has {len(inventory.devices)}. "
                    "Make a new job that needs no more than that."
                )
                await self._fail(job.job_id, State.QUEUED, "not_enough_devices", message, "devices")

    async def _fail_without_base(self) -> None:
        async with self._core.database.read() as session:
            waiting = await repository.list_without_base(session, _FAILURES_PER_PASS)
        for job, unsupported in waiting:
            if not self._may_act():
                return
            code, message = "unsupported_architecture", f"{unsupported} Choose another one."
            if unsupported is None:
                # Not the reason itself: it may name paths of the machine, which are the operator's business.
                code = "base_model_import_failed"
                message = (
                    f"The base model {job.base_model_id} could not be imported; "
                    "`tunesmithd models list` tells its operator why."
                )
            await self._fail(job.id, State(job.state), code, message, "model")

    async def _fail(self, job_id: str, state: State, code: str, message: str, param: str) -> None:
        """Fails a job that waits; nothing when it was cancelled or claimed meanwhile."""
        now = int(self._core.clock())
        async with self._core.database.write() as session:
            await jobs.transition(
                session,
                job_id,
                {state},
                State.FAILED,
                lease=None,
                now=now,
                events=[events.failure(code, message, param)],
                changes={"error_code": code, "error_message": message, "error_param": param, "finished_at": now},
            )


async def launch(core: Core, executor: Executor, identity: AttemptIdentity, devices: tuple[str, ...]) -> None:
    """Has the run started unless it exists; an executor that cannot now is asked again by the reconciler."""
    token = core.signer.attempt_token(identity)
    order = Launch(identity.attempt_id, token, core.settings.resolved_grpc_address, devices)
    try:
        await executor.ensure(order)
        reach("launch.done")
    except UnavailableError as error:
        _log.warning("attempt %s of %s cannot be launched now", identity.attempt_id, identity.job_id, exc_info=error)


def _attempt(identity: AttemptIdentity, kind: RunKind, devices: tuple[str, ...], now: int) -> AttemptRow:
    return AttemptRow(
        id=identity.attempt_id,
        job_id=identity.job_id,
        epoch=identity.epoch,
        kind=kind.value,
        state=repository.LIVE,
        device_ids=list(devices),
        created_at=now,
    )


def _claim_events(job: FineTuneRow, kind: RunKind) -> list[events.NewEvent]:
    if kind is RunKind.TRAINING:
        return [events.started(again=bool(job.retries) or job.run_seconds > 0)]
    return [] if job.retries else [events.validating(job.training_file_id, job.validation_file_id)]
