"""Owns the view that OpenAI's first fine-tuning API has of the same jobs.

It must not know rules of its own: service.py and history.py decide. Ids are `ft-` and the rest of the job's id.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FileRow, FineTuneRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.files.schemas import FileObject
from tunesmith_server.files.views import file_object
from tunesmith_server.fine_tunes import legacy_repository, repository, views
from tunesmith_server.fine_tunes.history import HistoryService
from tunesmith_server.fine_tunes.history_schemas import EventObject
from tunesmith_server.fine_tunes.legacy_schemas import (
    CreateLegacyFineTune,
    LegacyEvent,
    LegacyFineTune,
    LegacyHyperparams,
    ListedLegacyFineTune,
)
from tunesmith_server.fine_tunes.lookup import require_job
from tunesmith_server.fine_tunes.service import FineTunesService
from tunesmith_server.registry import repository as registry

_OLD_MODELS = ("ada", "babbage", "curie", "davinci")
_MAX_LISTED = 100
_MAX_EVENTS = 10_000
_USUAL = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0}

Status = Literal["created", "running", "succeeded", "failed", "cancelled"]
_STATUSES: Mapping[str, Status] = {
    "validating_files": "created",
    "queued": "created",
    "paused": "created",
    "running": "running",
    "pausing": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
}


class LegacyService:
    """Jobs of one project at a time, as clients of the old API see them."""

    def __init__(self, core: Core, jobs: FineTunesService, history: HistoryService) -> None:
        self._core = core
        self._jobs = jobs
        self._history = history

    @property
    def stopped(self) -> bool:
        """Whether streams end because the server stops."""
        return self._history.feed.stopped

    async def create(
        self, principal: Principal, request: CreateLegacyFineTune, idempotency_key: str | None
    ) -> LegacyFineTune:
        """Makes a job; raises what FineTunesService.create raises."""
        asked = request.modern()
        await self._check_model(asked.model)
        made = await self._jobs.create(principal, asked, idempotency_key)
        return await self.get(principal, made.id)

    async def get(self, principal: Principal, fine_tune_id: str) -> LegacyFineTune:
        """One job with its history; raises NotFoundError."""
        async with self._core.database.read() as session:
            row = await require_job(session, principal, _job_id(fine_tune_id))
            (shown,) = await _listed(session, principal, [row])
            events = await repository.list_events_since(session, row.id, 0, _MAX_EVENTS)
        return LegacyFineTune(**dict(shown), events=[legacy_event(views.event(event)) for event in events])

    async def list(self, principal: Principal) -> list[ListedLegacyFineTune]:
        """The project's newest jobs, newest first."""
        async with self._core.database.read() as session:
            rows = await repository.list_page(
                session, principal.project_id, after=None, limit=_MAX_LISTED, metadata=None
            )
            return await _listed(session, principal, rows)

    async def cancel(self, principal: Principal, fine_tune_id: str) -> LegacyFineTune:
        """Gives a job up; raises what FineTunesService.cancel raises."""
        await self._jobs.cancel(principal, _job_id(fine_tune_id))
        return await self.get(principal, fine_tune_id)

    async def follow_events(
        self, principal: Principal, fine_tune_id: str
    ) -> AsyncGenerator[Sequence[EventObject], None]:
        """A job's history from its first line until it has ended; raises NotFoundError."""
        return await self._history.follow_events(principal, _job_id(fine_tune_id))

    async def _check_model(self, model: str) -> None:
        if model not in _OLD_MODELS:
            return
        async with self._core.database.read() as session:
            known = await registry.find_base_model(session, model)
        if known is None:
            message = (
                f"The model {model} is not served here. Name a base model of GET /v1/models, "
                f"or ask the operator to make {model} an alias of one."
            )
            raise InvalidRequestError("model_not_found", message, param="model")


def legacy_event(event: EventObject) -> LegacyEvent:
    """One line of the history without what the old API does not know."""
    return LegacyEvent(created_at=event.created_at, level=event.level, message=event.message)


def _job_id(fine_tune_id: str) -> str:
    """Both forms are accepted, since people copy ids from one API to the other."""
    return f"ftjob-{fine_tune_id.removeprefix('ft-')}" if fine_tune_id.startswith("ft-") else fine_tune_id


async def _listed(
    session: AsyncSession, principal: Principal, rows: Sequence[FineTuneRow]
) -> list[ListedLegacyFineTune]:
    ids = {file_id for row in rows for file_id in (*_inputs(row), *row.result_file_ids)}
    files = await legacy_repository.get_files(session, principal.project_id, ids)
    changed = await legacy_repository.last_changes(session, [row.id for row in rows])
    return [_shown(row, files, changed.get(row.id, row.created_at)) for row in rows]


def _shown(row: FineTuneRow, files: Mapping[str, FileRow], updated_at: int) -> ListedLegacyFineTune:
    validation_files = [row.validation_file_id] if row.validation_file_id else []
    return ListedLegacyFineTune(
        id=f"ft-{row.id.removeprefix('ftjob-')}",
        created_at=row.created_at,
        updated_at=updated_at,
        model=views.model_name(row),
        fine_tuned_model=row.fine_tuned_model,
        organization_id=row.project_id,
        status=_STATUSES[views.status(row)],
        hyperparams=_hyperparams(row),
        training_files=_whole([row.training_file_id], files),
        validation_files=_whole(validation_files, files),
        result_files=_whole(row.result_file_ids, files),
    )


def _hyperparams(row: FineTuneRow) -> LegacyHyperparams:
    known = views.hyperparameters_of(row).model_dump()
    return LegacyHyperparams(
        **{name: usual if known[name] == "auto" else known[name] for name, usual in _USUAL.items()}
    )


def _inputs(row: FineTuneRow) -> list[str]:
    return [row.training_file_id, *([row.validation_file_id] if row.validation_file_id else [])]


def _whole(ids: Iterable[str], files: Mapping[str, FileRow]) -> list[FileObject]:
    return [file_object(files[file_id]) for file_id in ids if file_id in files]
