"""Owns the gauges that are read from the database when Prometheus asks: jobs by state, waiting time, live runs, leader.

It must not know who counts what happens; counters live beside the code that they count.
"""

from __future__ import annotations

import asyncio
import time

from prometheus_client import Gauge
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.core import Core
from tunesmith_server.db.tables import AttemptRow, FineTuneRow, LeaseRow, OutboxRow, WebhookDeliveryRow
from tunesmith_server.fine_tunes.state import TERMINAL, State

_JOBS = Gauge("tunesmith_jobs", "Jobs that have not ended, by state.", ["state"])
_OLDEST_WAIT = Gauge("tunesmith_queue_oldest_wait_seconds", "Age of the oldest job that waits for devices; 0: none.")
_LIVE_RUNS = Gauge("tunesmith_live_runs", "Attempts whose run may still exist, by kind.", ["kind"])
_LATE_RUNS = Gauge("tunesmith_late_runs", "Runs whose lease has expired: silent, and not known to be dead.")
_LEADER = Gauge("tunesmith_scheduler_led", "1 while some control plane holds the scheduler's lease.")
_OUTBOX = Gauge("tunesmith_webhooks_pending", "Messages that wait to be delivered.")
_LOOP_LAG = Gauge("tunesmith_event_loop_lag_seconds", "How late the event loop was when it was asked.")

_WAITING = [state for state in State if state not in TERMINAL]
_KINDS = ("preflight", "training")


async def refresh(core: Core) -> None:
    """Reads every gauge anew; a handful of indexed counts, cheap with any number of ended jobs."""
    await _measure_loop_lag()
    now = core.clock()
    async with core.database.read() as session:
        await _read_jobs(session, now)
        await _read_runs(session, now)
        fresh = await session.scalar(select(func.count()).where(OutboxRow.fanned_out_at.is_(None)))
        due = await session.scalar(select(func.count()).where(WebhookDeliveryRow.state == "pending"))
    _OUTBOX.set((fresh or 0) + (due or 0))


async def _read_jobs(session: AsyncSession, now: float) -> None:
    waiting = select(FineTuneRow.state, func.count()).where(FineTuneRow.state.in_(_WAITING), FineTuneRow.kind == "job")
    by_state = dict((await session.execute(waiting.group_by(FineTuneRow.state))).all())
    for state in _WAITING:
        _JOBS.labels(state.value).set(by_state.get(state.value, 0))
    oldest = await session.scalar(select(func.min(FineTuneRow.created_at)).where(FineTuneRow.state == State.QUEUED))
    _OLDEST_WAIT.set(max(0.0, now - oldest) if oldest is not None else 0.0)


async def _read_runs(session: AsyncSession, now: float) -> None:
    live = select(AttemptRow.kind, func.count()).where(AttemptRow.state == "live").group_by(AttemptRow.kind)
    by_kind = dict((await session.execute(live)).all())
    for kind in _KINDS:
        _LIVE_RUNS.labels(kind).set(by_kind.get(kind, 0))
    leased = select(func.count()).where(FineTuneRow.state.in_(_WAITING), FineTuneRow.lease_expires_at < now)
    _LATE_RUNS.set(await session.scalar(leased) or 0)
    led = select(func.count()).where(LeaseRow.name == "scheduler", LeaseRow.expires_at > now)
    _LEADER.set(1 if await session.scalar(led) else 0)


async def _measure_loop_lag() -> None:
    before = time.perf_counter()
    await asyncio.sleep(0)
    _LOOP_LAG.set(time.perf_counter() - before)
