"""Owns what users can do with jobs: create, read, list, cancel, pause, resume.

It must not know transports, nor how a run is started: it writes the job and wakes the scheduler.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import TunesmithError
from tunesmith_server.failpoints import reach
from tunesmith_server.fine_tunes import events, idempotency, policy, references, repository, steering, views
from tunesmith_server.fine_tunes.lookup import require_job
from tunesmith_server.fine_tunes.references import Origin
from tunesmith_server.fine_tunes.repeats import Refusals
from tunesmith_server.fine_tunes.schemas import CreateFineTune, FineTuneObject, FineTunePage
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.ids import new_id
from tunesmith_server.paging import check_limit, is_id, unknown_cursor
from tunesmith_server.projects import quotas
from tunesmith_server.scheduling.outlook import Outlook
from tunesmith_server.trackers import repository as trackers

_REPEAT_WINDOW_SECONDS = 600
"""How long a client may take to repeat a create call whose answer it did not get."""


def _nobody() -> None:
    """Stands where no scheduler runs in this process."""


class FineTunesService:
    """Jobs of one project at a time.

    `wake` tells the scheduler that there is something new, `outlook` where jobs stand in its queue; without it no
    job has a place.
    """

    def __init__(self, core: Core, wake: Callable[[], None] = _nobody, outlook: Outlook | None = None) -> None:
        self._core = core
        self._wake = wake
        self._outlook = outlook
        self._refusals = Refusals(_REPEAT_WINDOW_SECONDS)

    async def create(
        self,
        principal: Principal,
        request: CreateFineTune,
        idempotency_key: str | None = None,
        *,
        repeated: bool = False,
    ) -> FineTuneObject:
        """Makes a job in state validating_files, or returns the one that the same key made from the same body.

        `repeated`: the client says that it sends the call again; without a key, a job that the same body made in
        the last ten minutes is the answer, unless the call was refused the time before.
        Raises InvalidRequestError or NotFoundError with the parameter at fault, ConflictError (`idempotency_conflict`)
        or QuotaExceededError.
        """
        policy.check_idempotency_key(idempotency_key)
        policy.check_options(request, self._core.settings)
        call, now = (principal.project_id, body_hash(request)), int(self._core.clock())
        was_refused = self._refusals.take(*call, now)  # whatever comes of this call: the next one repeats this one
        repeated = repeated and not was_refused
        try:
            job = await self._create(principal, request, idempotency_key, repeated)
        except IntegrityError:
            # The same key arrived twice at the same moment; the other call's job is there now.
            job = await self._create(principal, request, idempotency_key, repeated)
        except TunesmithError:
            self._refusals.add(*call, now)
            raise
        self._wake()
        return views.fine_tune(job)

    async def get(self, principal: Principal, job_id: str) -> FineTuneObject:
        """One job with its place in the queue; raises NotFoundError."""
        async with self._core.database.read() as session:
            job = await require_job(session, principal, job_id)
        return views.fine_tune(job, await self._queue_position(job))

    async def list(
        self,
        principal: Principal,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
    ) -> FineTunePage:
        """Jobs, newest first; `metadata` as in repository.list_page. Raises InvalidRequestError for a bad cursor."""
        check_limit(limit)
        async with self._core.database.read() as session:
            cursor = None
            if after is not None:
                cursor = await repository.get(session, after, principal.project_id) if is_id(after) else None
                if cursor is None or cursor.kind != repository.JOB:
                    raise unknown_cursor(after)
            rows = await repository.list_page(
                session, principal.project_id, after=cursor, limit=limit + 1, metadata=metadata
            )
        return FineTunePage(data=[views.fine_tune(row) for row in rows[:limit]], has_more=len(rows) > limit)

    async def cancel(self, principal: Principal, job_id: str) -> FineTuneObject:
        """Gives the job up: from now on it is shown as cancelled and never becomes anything else; see steering."""
        return await self._steer(principal, job_id, steering.cancel)

    async def pause(self, principal: Principal, job_id: str) -> FineTuneObject:
        """Has the job keep what it has done and wait for `resume`; see steering."""
        return await self._steer(principal, job_id, steering.pause)

    async def resume(self, principal: Principal, job_id: str) -> FineTuneObject:
        """Lets a paused job go on; see steering."""
        return await self._steer(principal, job_id, steering.resume)

    async def _queue_position(self, job: FineTuneRow) -> int | None:
        if self._outlook is None or job.state != State.QUEUED or job.cancel_requested:
            return None
        place = (await self._outlook.places([job])).get(job.id)
        return place.position if place is not None else None

    async def _steer(
        self,
        principal: Principal,
        job_id: str,
        attempt: Callable[[AsyncSession, FineTuneRow, int], Awaitable[bool]],
    ) -> FineTuneObject:
        done = False
        while not done:
            async with self._core.database.write() as session:
                job = await require_job(session, principal, job_id)
                done = await attempt(session, job, int(self._core.clock()))
                reach("steer.writing")
        reach("steer.written")
        self._wake()
        return await self.get(principal, job_id)

    async def _create(
        self, principal: Principal, request: CreateFineTune, key: str | None, repeated: bool
    ) -> FineTuneRow:
        hashed = body_hash(request)
        project_id, now = principal.project_id, int(self._core.clock())
        async with self._core.database.write() as session:
            known = await idempotency.made_before(session, project_id, key, hashed)
            if known is not None:
                return await require_job(session, principal, known)
            if repeated and not key:
                made = await repository.find_repeated(session, project_id, hashed, now - _REPEAT_WINDOW_SECONDS)
                if made is not None:
                    return made
            found = await references.find(session, project_id, request, now)
            origin = policy.check_references(found, request, self._core.settings)
            max_jobs = quotas.read_quotas(found.quotas, self._core.settings).max_jobs
            await quotas.require_job(session, max_jobs, project_id)
            job = new_row(new_id("ftjob-"), principal, request, origin, now)
            await idempotency.remember(session, project_id, key, hashed, job.id, now)
            await repository.insert(session, job, *events.first_lines(job.id, origin.waits_for))
            await trackers.insert_runs(session, job)
            reach("create.writing")
        reach("create.written")
        return job


def new_row(row_id: str, principal: Principal, request: CreateFineTune, origin: Origin, now: int) -> FineTuneRow:
    """The row of a new job, not stored yet."""
    asked = request.effective_hyperparameters.model_dump() | request.training.model_dump()
    if request.training.weights == "lora":
        asked |= origin.adapter
    wishes = request.scheduling
    asked["devices"] = wishes.devices
    return FineTuneRow(
        id=row_id,
        project_id=principal.project_id,
        kind=repository.JOB,
        state=State.VALIDATING_FILES.value,
        epoch=0,
        cancel_requested=False,
        auto_start=request.auto_start,
        priority=wishes.priority,
        devices=1 if wishes.devices == "auto" else wishes.devices,
        max_run_seconds=wishes.max_run_seconds,
        max_device_seconds=wishes.max_device_seconds,
        not_before=float(now),
        retries={},
        base_model_id=origin.base_model_id,
        start_model=origin.model,
        start_revision=origin.revision,
        training_file_id=request.training_file,
        validation_file_id=request.validation_file,
        method="supervised" if request.method is None else request.method.type,
        suffix=request.suffix,
        name_id=new_id("", 8),
        seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
        requested={name: value for name, value in asked.items() if value not in ("auto", None)},
        user_metadata=request.metadata,
        integrations=[each.model_dump() for each in request.integrations or ()] or None,
        body_hash=body_hash(request),
        key_id=principal.key_id,
        last_sequence=0,
        result_file_ids=[],
        created_at=now,
    )


def body_hash(request: CreateFineTune) -> str:
    """Equal for create calls that ask for the same."""
    return hashlib.sha256(json.dumps(request.model_dump(), sort_keys=True).encode()).hexdigest()
