"""Owns how stored rows become what the policy of the queue looks at: who waits, who runs, what each project has had.

It must not know what is decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.config import Settings
from tunesmith_server.fine_tunes.state import State
from tunesmith_server.projects.quotas import DEVICE_SECONDS_WINDOW, Quotas, read_quotas
from tunesmith_server.scheduling import repository
from tunesmith_server.scheduling.capacity import Project, RunKind, Running, Waiting
from tunesmith_server.training import accounting

HALF_LIFE_DAYS = 1
"""After so long, what a project has used weighs half as much against it."""

_DAY = 86400


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The queue at one moment. `projects` holds those that have a job waiting for devices."""

    preflights: Sequence[Waiting]
    live_preflights: int
    waiting: Sequence[Waiting]
    running: Sequence[Running]
    projects: Mapping[str, Project]


async def take(session: AsyncSession, settings: Settings, now: float, per_project: int) -> Snapshot:
    """Reads the queue; of each project at most `per_project` waiting jobs."""
    holders = await repository.list_holders(session)
    preflights = await repository.list_waiting(session, RunKind.PREFLIGHT, now, settings.max_concurrent_preflights)
    waiting = [_waiting(row) for row in await repository.list_waiting(session, RunKind.TRAINING, now, per_project)]
    running = [_running(row, now) for row in holders if row.kind == RunKind.TRAINING]
    return Snapshot(
        preflights=[_waiting(row) for row in preflights],
        live_preflights=sum(row.kind == RunKind.PREFLIGHT for row in holders),
        waiting=waiting,
        running=await _with_saves(session, running, waiting),
        projects=await _projects(session, settings, {job.project_id for job in waiting}, running, now),
    )


async def _with_saves(
    session: AsyncSession, running: Sequence[Running], waiting: Sequence[Waiting]
) -> Sequence[Running]:
    """Adds when runs last saved, where it may matter: when somebody waits who could have them make room."""
    highest = max((job.priority for job in waiting), default=None)
    lower = {run.job_id for run in running if highest is not None and run.priority < highest}
    if not lower:
        return running
    saved = await repository.newest_checkpoints(session, lower)
    return [replace(run, saved_at=float(saved.get(run.job_id, 0))) for run in running]


async def _projects(
    session: AsyncSession, settings: Settings, project_ids: set[str], running: Sequence[Running], now: float
) -> dict[str, Project]:
    if not project_ids:
        return {}
    stored = await repository.quotas_by_project(session, project_ids)
    used = await accounting.device_seconds_by_day(session, sorted(project_ids), now - DEVICE_SECONDS_WINDOW, now)
    return {
        project_id: _project(
            read_quotas(stored.get(project_id, {}), settings),
            used.get(project_id, {}),
            sum(max(now - run.started_at, 0.0) * len(run.devices) for run in running if run.project_id == project_id),
            now,
        )
        for project_id in project_ids
    }


def _project(quotas: Quotas, used_by_day: Mapping[int, float], live: float, now: float) -> Project:
    recent = sum(seconds * 0.5 ** ((now - day) // _DAY / HALF_LIFE_DAYS) for day, seconds in used_by_day.items())
    limit = quotas.max_device_seconds
    return Project(
        share=quotas.share,
        used=recent + live,
        max_running=quotas.max_running,
        device_seconds_left=None if limit is None else limit - sum(used_by_day.values()) - live,
    )


def _waiting(row: Row[Any]) -> Waiting:
    return Waiting(
        job_id=row.job_id,
        project_id=row.project_id,
        priority=row.priority,
        position=row.position,
        devices=row.devices,
        expected_seconds=row.expected_seconds,
    )


def _running(row: Row[Any], now: float) -> Running:
    owns_job = row.lease_token == row.attempt_id
    leaving = row.cancel_requested or row.preempt_requested or row.state == State.PAUSING or not owns_job
    return Running(
        attempt_id=row.attempt_id,
        job_id=row.job_id,
        project_id=row.project_id,
        devices=tuple(row.device_ids),
        started_at=float(row.created_at),
        priority=row.priority,
        remaining_seconds=None if row.estimated_finish is None else max(row.estimated_finish - now, 0.0),
        leaving=leaving,
    )
