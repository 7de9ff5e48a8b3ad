"""Owns what a project may use: how its quotas are read, and the refusal of storage beyond them.

It must not know who asks. Limits are seen by whoever enforces them: jobs at their creation, devices in the scheduler,
rates at the door.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.config import Settings
from tunesmith_server.db.tables import FineTuneRow, ProjectRow
from tunesmith_server.errors import InvalidRequestError, QuotaExceededError
from tunesmith_server.files.repository import stored_bytes
from tunesmith_server.fine_tunes.state import TERMINAL, State
from tunesmith_server.projects import repository

_LIVE = tuple(state.value for state in State if state not in TERMINAL)

DEVICE_SECONDS_WINDOW = 30 * 24 * 3600
"""Seconds over which `max_device_seconds` counts."""
_JOB_RETRY_SECONDS = 30.0  # clients of OpenAI's wait for a minute at most


@dataclass(frozen=True, slots=True)
class Quotas:
    """The limits of one project; None is no limit."""

    max_jobs: int | None
    """Jobs that wait or run."""
    max_running: int | None
    """Runs at once; more jobs wait."""
    max_storage_bytes: int | None
    max_device_seconds: int | None
    """Within DEVICE_SECONDS_WINDOW; jobs beyond it wait."""
    requests_per_minute: int | None
    """Of each key, on one server process."""
    tokens_per_minute: int | None
    """Of inference, of each key, on one server process."""
    share: float
    """Weight among projects that wait for devices."""


MAX_SHARE = 1000


NAMES = tuple(field.name for field in fields(Quotas))
"""Keys of a project's stored quotas."""


def read_quotas(stored: Mapping[str, int | float | None], settings: Settings) -> Quotas:
    """The limits of a project out of its row; a name that is absent has the installation's default."""
    values = {name: stored.get(name, getattr(settings, f"quota_{name}")) for name in NAMES}
    return Quotas(**values)


def check_quota(name: str, value: float | None) -> None:
    """Passes for a value that the quota `name` can have, None included; raises InvalidRequestError."""
    if value is None:
        return
    if name == "share":
        if not 0 < value <= MAX_SHARE:
            message = f"A share must be above 0 and at most {MAX_SHARE}."
            raise InvalidRequestError("invalid_value", message, param="quotas.share")
        return
    smallest = 1 if name.endswith("_per_minute") else 0
    if value != int(value) or not smallest <= value < 2**63:
        message = f"{name} must be a whole number from {smallest} on."
        raise InvalidRequestError("invalid_value", message, param=f"quotas.{name}")


async def get_quotas(session: AsyncSession, settings: Settings, project_id: str) -> Quotas:
    """The limits of a project; those of an unknown one are the defaults."""
    stored = await session.scalar(select(ProjectRow.quotas).where(ProjectRow.id == project_id))
    return read_quotas(stored or {}, settings)


async def require_job(session: AsyncSession, limit: int | None, project_id: str) -> None:
    """Passes when the project may have one more job or import that waits or runs, `limit` being its `max_jobs`.

    Raises QuotaExceededError (`quota_exceeded`). To be called in the transaction that makes the job.
    """
    if limit is None:
        return
    await repository.in_turn(session, project_id)
    live = select(func.count()).where(
        FineTuneRow.project_id == project_id,
        FineTuneRow.kind != "estimate",
        FineTuneRow.state.in_(_LIVE),
        # Cancelled is final at once for the user, though its run may still be ending.
        FineTuneRow.cancel_requested.is_(False),
    )
    if (await session.scalar(live) or 0) >= limit:
        message = (
            f"The project may have {limit} jobs that wait or run, and has them. "
            "Wait until one has ended, cancel one, or ask the operator for more."
        )
        # Of no use where none is allowed; else jobs end, though nobody knows when.
        raise QuotaExceededError("quota_exceeded", message, retry_after=_JOB_RETRY_SECONDS if limit else None)


async def require_storage(session: AsyncSession, settings: Settings, project_id: str, additional_bytes: int) -> None:
    """Passes when the project may store so many bytes more; raises QuotaExceededError (`storage_quota_exceeded`).

    To be called in the transaction that enters them.
    """
    limit = (await get_quotas(session, settings, project_id)).max_storage_bytes
    if limit is None:
        return
    await repository.in_turn(session, project_id)
    used = await stored_bytes(session, project_id)
    if used + additional_bytes > limit:
        message = (
            f"The project may store {limit} bytes, and with this it would store {used + additional_bytes}. "
            "Delete files that are no longer needed, or ask the operator for more."
        )
        raise QuotaExceededError("storage_quota_exceeded", message)
