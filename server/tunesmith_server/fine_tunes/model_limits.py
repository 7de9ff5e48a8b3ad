"""Owns what each base model takes, and how much of a project's allowance is in use on it.

It must not know transports or how limits are enforced.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.fine_tunes import policy, repository
from tunesmith_server.fine_tunes.state import TERMINAL, State
from tunesmith_server.projects import quotas
from tunesmith_server.registry import repository as registry


class ModelLimits(BaseModel):
    """One base model; null is no limit, or not known before its import. The four last are our additions."""

    object: Literal["fine_tuning.model_limits"] = "fine_tuning.model_limits"
    model: str
    max_total_jobs: int | None
    """Of the project, over all models: jobs that wait or run."""
    max_concurrent_jobs: int | None
    """Likewise, runs at once."""
    active_jobs: int
    """Of the project on this model: jobs that wait or run."""
    context_length: int | None
    """Tokens."""
    max_lora_rank: int
    methods: list[str]
    weights: list[str]


class ModelLimitsPage(BaseModel):
    """Every base model that can be tuned."""

    object: Literal["list"] = "list"
    data: list[ModelLimits]


class ModelLimitsService:
    """The limits of one project at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def list(self, principal: Principal) -> list[ModelLimits]:
        """One entry for each base model whose import has not failed, by its id."""
        settings = self._core.settings
        async with self._core.database.read() as session:
            bases = await registry.list_base_models(session)
            allowed = await quotas.get_quotas(session, settings, principal.project_id)
            active = await _active_jobs(session, principal.project_id)
        return [
            ModelLimits(
                model=base.id,
                max_total_jobs=allowed.max_jobs,
                max_concurrent_jobs=allowed.max_running,
                active_jobs=active.get(base.id, 0),
                context_length=_shorter(base.context_length, settings.max_context_length),
                max_lora_rank=settings.max_lora_rank,
                methods=[*policy.METHODS],
                weights=[*policy.WEIGHTS],
            )
            for base in bases
            if base.state != registry.FAILED
        ]


async def _active_jobs(session: AsyncSession, project_id: str) -> dict[str, int]:
    query = (
        select(FineTuneRow.base_model_id, func.count())
        .where(FineTuneRow.project_id == project_id, FineTuneRow.kind == repository.JOB)
        .where(FineTuneRow.state.in_([state.value for state in State if state not in TERMINAL]))
        .where(FineTuneRow.cancel_requested.is_(False))
        .group_by(FineTuneRow.base_model_id)
    )
    return {row[0]: row[1] for row in await session.execute(query)}


def _shorter(known: int | None, limit: int | None) -> int | None:
    lengths = [length for length in (known, limit) if length is not None]
    return min(lengths, default=None)
