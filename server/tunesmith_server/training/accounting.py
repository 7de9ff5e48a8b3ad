"""Owns what the attempts of a job took: seconds and device-seconds, on the job and in its project's usage.

It must not know why an attempt ended. A preflight takes no device and costs nothing; nor does a wait in a queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.db.tables import AttemptRow, FineTuneRow
from tunesmith_server.projects import usage_repository as usage
from tunesmith_server.training.limits import Limit, Spent, used_up

_TRAINING = "training"
_DAY = 86400


async def begin(session: AsyncSession, attempt_id: str, now: int) -> None:
    """Counts the attempt's time from now on, unless it counts already."""
    begun = update(AttemptRow).where(AttemptRow.id == attempt_id, AttemptRow.started_at.is_(None))
    await session.execute(begun.values(started_at=now).execution_options(synchronize_session=False))


def spent_live(attempt: AttemptRow, now: float) -> Spent:
    """What the attempt has taken until now."""
    if attempt.kind != _TRAINING or attempt.started_at is None:
        return Spent(0.0, 0.0)
    seconds = max(now - attempt.started_at, 0.0)
    # An attempt of a version that did not write devices down had one.
    return Spent(seconds, seconds * max(len(attempt.device_ids), 1))


async def spent_by(session: AsyncSession, attempt_id: str, now: float) -> Spent:
    """The same of the attempt with this id; nothing when there is none."""
    attempt = await session.get(AttemptRow, attempt_id)
    return Spent(0.0, 0.0) if attempt is None else spent_live(attempt, now)


def limit_reached(job: FineTuneRow, live: Spent) -> Limit | None:
    """The limit that the job has used up while its present attempt took `live`."""
    before = Spent(job.run_seconds, job.device_seconds)
    return used_up(before, live, job.max_run_seconds, job.max_device_seconds)


def charged(job: FineTuneRow, live: Spent) -> dict[str, object]:
    """The columns to write when the present attempt ends."""
    return {
        "run_seconds": job.run_seconds + live.run_seconds,
        "device_seconds": job.device_seconds + live.device_seconds,
    }


async def record(session: AsyncSession, job: FineTuneRow, live: Spent, now: int, trained_tokens: int = 0) -> None:
    """Adds what an attempt took to its project's usage of this hour; once, with the write that ends the attempt."""
    if live.device_seconds <= 0 and trained_tokens <= 0:
        return
    line = usage.UsageLine(
        project_id=job.project_id,
        key_id=job.key_id or "",
        model=job.base_model_id,
        kind="training",
        hour=now,
        requests=0 if job.run_seconds > 0 else 1,  # jobs, not attempts
        input_tokens=trained_tokens,
        device_seconds=live.device_seconds,
    )
    await usage.add(session, line)


async def device_seconds_by_day(
    session: AsyncSession, project_ids: Sequence[str], since: float, until: float
) -> dict[str, dict[int, float]]:
    """Device-seconds of ended attempts in between, by project and by start of the day (Unix seconds)."""
    which = usage.UsageFilter(kinds=("training",), project_ids=project_ids)
    found: dict[str, dict[int, float]] = {}
    for each in await usage.sums(session, which, int(since), int(until) + 1, _DAY, ("project_id",)):
        found.setdefault(each.group["project_id"], {})[each.start_time] = each.device_seconds
    return found
