"""Owns models from outside, from the call that names an uploaded file until they are ready: their rows are jobs.

It must not know transports, nor what a run makes of the file. An import is a row of its own kind that no list or route
of jobs shows; the run that does it is scheduled like a preflight, takes no device and ends with a model's name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import BaseModelRow, FineTuneRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.files import repository as files
from tunesmith_server.files.limits import MODEL_PURPOSE
from tunesmith_server.fine_tunes import events, idempotency, policy, steering
from tunesmith_server.fine_tunes import repository as jobs
from tunesmith_server.fine_tunes.state import TERMINAL, State
from tunesmith_server.fine_tunes.views import tuned_name
from tunesmith_server.ids import new_id
from tunesmith_server.paging import is_id
from tunesmith_server.projects import quotas
from tunesmith_server.registry import repository
from tunesmith_server.registry.schemas import CreateModel

_NAME_ID_LENGTH = 8


def _nobody() -> None:
    """Stands where no scheduler runs in this process."""


class ImportsService:
    """Imports of one project at a time. `wake` tells the scheduler that there is something new."""

    def __init__(self, core: Core, wake: Callable[[], None] = _nobody) -> None:
        self._core = core
        self._wake = wake

    async def create(
        self, principal: Principal, request: CreateModel, idempotency_key: str | None = None
    ) -> FineTuneRow:
        """Begins an import, or returns the one that the same key began with the same body.

        Raises InvalidRequestError with the parameter at fault, ConflictError (`idempotency_conflict`) or
        QuotaExceededError.
        """
        policy.check_idempotency_key(idempotency_key)
        try:
            row = await self._create(principal, request, idempotency_key)
        except IntegrityError:
            # The same key arrived twice at the same moment; what the other call began is there now.
            row = await self._create(principal, request, idempotency_key)
        self._wake()
        return row

    async def _create(self, principal: Principal, request: CreateModel, key: str | None) -> FineTuneRow:
        body_hash = hashlib.sha256(json.dumps(["model", request.model_dump()], sort_keys=True).encode()).hexdigest()
        project_id, now = principal.project_id, int(self._core.clock())
        async with self._core.database.write() as session:
            known = await idempotency.made_before(session, project_id, key, body_hash)
            made = await jobs.get(session, known, project_id) if known is not None else None
            if made is not None:
                return made
            base = await _require_base(session, request.base_model)
            await _require_file(session, project_id, request.file, now)
            limits = await quotas.get_quotas(session, self._core.settings, project_id)
            await quotas.require_job(session, limits.max_jobs, project_id)
            row = _new_row(principal, request, base.id, body_hash, now)
            await idempotency.remember(session, project_id, key, body_hash, row.id, now)
            await jobs.insert(session, row, events.created(row.id))
        return row


async def find(session: AsyncSession, project_id: str, name: str) -> FineTuneRow | None:
    """The project's import under way, or failed, that was to give this name; None once it has given it."""
    name_id = name.rpartition(":")[2]
    row = await jobs.get(session, _id_of(name_id), project_id) if is_id(name_id) else None
    if row is None or tuned_name(row) != name or row.cancel_requested:
        return None
    return row if row.state == State.FAILED or row.state not in TERMINAL else None


async def cancel(session: AsyncSession, project_id: str, name: str, now: int) -> bool:
    """Gives up the import that was to give this name; False when none is under way."""
    while True:
        row = await find(session, project_id, name)
        if row is None or row.state in TERMINAL:
            return False
        if await steering.cancel(session, row, now):
            return True


def _id_of(name_id: str) -> str:
    """A model's name tells the import that makes it."""
    return f"ftimport-{name_id}"


async def _require_base(session: AsyncSession, name: str) -> BaseModelRow:
    base = await repository.find_base_model(session, name) if name.isprintable() else None
    if base is None:
        message = f"There is no base model {name[:200]!r} here. GET /v1/models lists those that there are."
        raise InvalidRequestError("model_not_found", message, param="base_model")
    return base


async def _require_file(session: AsyncSession, project_id: str, file_id: str, now: int) -> None:
    file = await files.get_live(session, project_id, file_id, now) if is_id(file_id) else None
    if file is None:
        message = f"There is no file {file_id[:80]!r} in this project. Upload it with purpose {MODEL_PURPOSE} first."
        raise InvalidRequestError("file_not_found", message, param="file")
    if file.purpose != MODEL_PURPOSE:
        message = f"The file {file_id} has the purpose {file.purpose}. Upload it with purpose {MODEL_PURPOSE}."
        raise InvalidRequestError("invalid_purpose", message, param="file")


def _new_row(principal: Principal, request: CreateModel, base_model_id: str, body_hash: str, now: int) -> FineTuneRow:
    name_id = new_id("", _NAME_ID_LENGTH)
    return FineTuneRow(
        id=_id_of(name_id),
        project_id=principal.project_id,
        kind=jobs.IMPORT,
        state=State.VALIDATING_FILES.value,
        epoch=0,
        cancel_requested=False,
        auto_start=True,
        not_before=float(now),
        retries={},
        base_model_id=base_model_id,
        training_file_id=request.file,
        method=jobs.IMPORT,
        suffix=request.suffix,
        name_id=name_id,
        seed=0,
        requested={},
        body_hash=body_hash,
        key_id=principal.key_id,
        last_sequence=0,
        result_file_ids=[],
        created_at=now,
    )
