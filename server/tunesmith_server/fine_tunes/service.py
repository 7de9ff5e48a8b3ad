"""Owns what users can do with jobs: create, read, list, cancel, follow. Policy lives here, shape in schemas.py.

It must not know transports, nor how a run is started: it writes the job and wakes the scheduler.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import BaseModelRow, FileRow, FineTuneRow, IdempotencyRow
from tunesmith_server.errors import ConflictError, InvalidRequestError, NotFoundError
from tunesmith_server.files import repository as files
from tunesmith_server.fine_tunes import events, repository, views
from tunesmith_server.fine_tunes.schemas import (
    CheckpointPage,
    CreateFineTune,
    EventPage,
    FineTuneObject,
    FineTunePage,
)
from tunesmith_server.fine_tunes.state import TERMINAL, State
from tunesmith_server.ids import new_id
from tunesmith_server.registry import repository as registry
from tunesmith_server.training import repository as training

MAX_PAGE = 100

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


def _nobody() -> None:
    """Stands where no scheduler runs in this process."""


class FineTunesService:
    """Jobs of one project at a time. `wake` tells the scheduler that there is something new."""

    def __init__(self, core: Core, wake: Callable[[], None] = _nobody) -> None:
        self._core = core
        self._wake = wake

    async def create(
        self, principal: Principal, request: CreateFineTune, idempotency_key: str | None = None
    ) -> FineTuneObject:
        """Makes a job in state validating_files, or returns the one that the same key made from the same body.

        Raises InvalidRequestError with the parameter at fault, or ConflictError (`idempotency_conflict`).
        """
        _check_idempotency_key(idempotency_key)
        _check_method(request)
        _check_training(request, self._core.settings.max_lora_rank)
        try:
            job = await self._create(principal, request, idempotency_key)
        except IntegrityError:
            # The same key arrived twice at the same moment; the other call's job is there now.
            job = await self._create(principal, request, idempotency_key)
        self._wake()
        return views.fine_tune(job)

    async def get(self, principal: Principal, job_id: str) -> FineTuneObject:
        """One job; raises NotFoundError."""
        async with self._core.database.read() as session:
            return views.fine_tune(await _require(session, principal, job_id))

    async def list(
        self,
        principal: Principal,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
    ) -> FineTunePage:
        """Jobs, newest first; `metadata` as in repository.list_page. Raises InvalidRequestError for a bad cursor."""
        _check_limit(limit)
        async with self._core.database.read() as session:
            cursor = None
            if after is not None:
                cursor = await repository.get(session, after, principal.project_id) if _is_id(after) else None
                if cursor is None:
                    raise _unknown_cursor(after)
            rows = await repository.list_page(
                session, principal.project_id, after=cursor, limit=limit + 1, metadata=metadata
            )
        return FineTunePage(data=[views.fine_tune(row) for row in rows[:limit]], has_more=len(rows) > limit)

    async def cancel(self, principal: Principal, job_id: str) -> FineTuneObject:
        """Gives the job up; from now on it is shown as cancelled and never becomes anything else.

        A job that has ended is refused with 400 and not with 409, which OpenAI's clients would repeat in vain.
        """
        moved = False
        while not moved:
            async with self._core.database.write() as session:
                job = await _require(session, principal, job_id)
                if job.cancel_requested or job.state in TERMINAL:
                    message = f"The job {job_id} is {views.status(job)}. Only jobs under way can be cancelled."
                    raise InvalidRequestError("job_not_cancellable", message)
                moved = await self._cancel(session, job)
        self._wake()
        return await self.get(principal, job_id)

    async def list_events(
        self, principal: Principal, job_id: str, *, after: str | None = None, limit: int = 20
    ) -> EventPage:
        """The job's history, newest first; raises NotFoundError, or InvalidRequestError for a bad cursor."""
        _check_limit(limit)
        async with self._core.database.read() as session:
            await _require(session, principal, job_id)
            cursor = None
            if after is not None:
                cursor = await repository.get_event(session, job_id, after) if _is_id(after) else None
                if cursor is None:
                    raise _unknown_cursor(after)
            rows = await repository.list_events(session, job_id, after=cursor, limit=limit + 1)
        return EventPage(data=[views.event(row) for row in rows[:limit]], has_more=len(rows) > limit)

    async def list_checkpoints(
        self, principal: Principal, job_id: str, *, after: str | None = None, limit: int = 10
    ) -> CheckpointPage:
        """The job's checkpoints, newest first; raises NotFoundError, or InvalidRequestError for a bad cursor."""
        _check_limit(limit)
        async with self._core.database.read() as session:
            await _require(session, principal, job_id)
            cursor = None
            if after is not None:
                cursor = await training.get_checkpoint(session, job_id, after) if _is_id(after) else None
                if cursor is None:
                    raise _unknown_cursor(after)
            rows = await training.list_checkpoints(session, job_id, after=cursor, limit=limit + 1)
        data = [views.checkpoint(row) for row in rows[:limit]]
        return CheckpointPage(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(rows) > limit,
        )

    async def _create(self, principal: Principal, request: CreateFineTune, key: str | None) -> FineTuneRow:
        body_hash = _body_hash(request)
        async with self._core.database.write() as session:
            known = await repository.get_idempotency(session, principal.project_id, key) if key else None
            if known is not None:
                if known.body_hash != body_hash:
                    message = "This Idempotency-Key was used with another body. Use a new key for a new job."
                    raise ConflictError("idempotency_conflict", message)
                return await _require(session, principal, known.resource_id)
            base = await self._check_policy(session, principal, request)
            job = self._new_job(principal, request, base)
            if key:
                row = IdempotencyRow(
                    project_id=principal.project_id,
                    key=key,
                    body_hash=body_hash,
                    resource_id=job.id,
                    created_at=job.created_at,
                )
                await repository.insert_idempotency(session, row)
            await repository.insert(session, job, events.created(job.id))
        return job

    async def _check_policy(self, session: AsyncSession, principal: Principal, request: CreateFineTune) -> BaseModelRow:
        base = await registry.find_base_model(session, request.model) if request.model.isprintable() else None
        if base is None:
            message = f"The model {request.model!r} cannot be fine-tuned here. GET /v1/models lists the base models."
            raise InvalidRequestError("model_not_found", message, param="model")
        project, minimum = principal.project_id, self._core.settings.min_training_rows
        await _check_file(session, project, request.training_file, "training_file", minimum)
        if request.validation_file is not None:
            await _check_file(session, project, request.validation_file, "validation_file", 1)
        return base

    def _new_job(self, principal: Principal, request: CreateFineTune, base: BaseModelRow) -> FineTuneRow:
        now = self._core.clock()
        asked = request.effective_hyperparameters.model_dump() | request.training.model_dump()
        return FineTuneRow(
            id=new_id("ftjob-"),
            project_id=principal.project_id,
            state=State.VALIDATING_FILES.value,
            epoch=0,
            cancel_requested=False,
            not_before=now,
            retries={},
            base_model_id=base.id,
            training_file_id=request.training_file,
            validation_file_id=request.validation_file,
            method="supervised",
            suffix=request.suffix,
            name_id=new_id("", 8),
            seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
            requested={name: value for name, value in asked.items() if value != "auto"},
            user_metadata=request.metadata,
            last_sequence=0,
            result_file_ids=[],
            created_at=int(now),
        )

    async def _cancel(self, session: AsyncSession, job: FineTuneRow) -> bool:
        """False when the job changed hands meanwhile."""
        now = int(self._core.clock())
        if job.lease_token is None:
            return await repository.transition(
                session,
                job.id,
                {State(job.state)},
                State.CANCELLED,
                lease=None,
                now=now,
                events=[events.cancelled()],
                changes={"finished_at": now},
            )
        # A run owns the job: it is told by its next heartbeat, and the reconciler sees to its end.
        return await repository.amend(
            session,
            job.id,
            lease=job.lease_token,
            now=now,
            events=[events.cancelled()],
            changes={"cancel_requested": True, "finished_at": now},
        )


async def _require(session: AsyncSession, principal: Principal, job_id: str) -> FineTuneRow:
    job = await repository.get(session, job_id, principal.project_id) if _is_id(job_id) else None
    if job is None:
        message = f"There is no fine-tuning job {job_id[:80]!r} in this project. GET /v1/fine_tuning/jobs lists them."
        raise NotFoundError("fine_tune_not_found", message, param="fine_tuning_job_id")
    return job


async def _check_file(session: AsyncSession, project_id: str, file_id: str, param: str, min_rows: int) -> FileRow:
    file = await files.get(session, project_id, file_id) if _is_id(file_id) else None
    if file is None:
        message = f"There is no file {file_id[:80]!r} in this project. Upload it with purpose fine-tune first."
        raise InvalidRequestError("file_not_found", message, param=param)
    if file.purpose != "fine-tune":
        message = f"The file {file_id} has the purpose {file.purpose}. Upload it with purpose fine-tune."
        raise InvalidRequestError("invalid_purpose", message, param=param)
    if file.status != "processed":
        message = f"The file {file_id} has the status {file.status} and cannot be used. Upload it again."
        raise InvalidRequestError("file_not_processed", message, param=param)
    if (file.rows or 0) < min_rows:
        message = f"The file {file_id} has {file.rows or 0} rows, but at least {min_rows} are needed. Add rows."
        raise InvalidRequestError("invalid_n_examples", message, param=param)
    return file


def _check_method(request: CreateFineTune) -> None:
    if request.method is not None and request.method.type != "supervised":
        message = "Only the method supervised is offered here. Set method.type to supervised or leave method out."
        raise InvalidRequestError("unsupported_method", message, param="method.type")
    if request.integrations:
        message = "No integrations are offered here. Leave integrations out; metrics are in the job's events."
        raise InvalidRequestError("unsupported_integration", message, param="integrations")


def _check_training(request: CreateFineTune, max_lora_rank: int) -> None:
    training = request.training
    if training.lora_rank != "auto" and training.lora_rank > max_lora_rank:
        message = f"Serving engines here load adapters up to rank {max_lora_rank}. Ask for at most {max_lora_rank}."
        raise InvalidRequestError("lora_rank_too_high", message, param="training.lora_rank")
    for name in ("lora_rank", "lora_alpha"):
        if training.weights == "full" and getattr(training, name) != "auto":
            message = f"Full weights have no {name}. Leave it out or set training.weights to lora."
            raise InvalidRequestError("invalid_value", message, param=f"training.{name}")


def _check_idempotency_key(key: str | None) -> None:
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        message = "An Idempotency-Key must be 1 to 255 printable ASCII characters without spaces."
        raise InvalidRequestError("invalid_idempotency_key", message, param="Idempotency-Key")


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidRequestError("invalid_value", f"`limit` must be from 1 to {MAX_PAGE}.", param="limit")


def _is_id(text: str) -> bool:
    """Whether this can be an id of ours; anything else never reaches the database, which may choke on it."""
    return _ID.fullmatch(text) is not None


def _unknown_cursor(after: str) -> InvalidRequestError:
    message = f"There is nothing with the id {after[:80]!r} to continue after. Pass the last id of the page before."
    return InvalidRequestError("invalid_cursor", message, param="after")


def _body_hash(request: CreateFineTune) -> str:
    return hashlib.sha256(json.dumps(request.model_dump(), sort_keys=True).encode()).hexdigest()
