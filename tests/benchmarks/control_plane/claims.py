"""Owns how fast the real scheduler claims jobs, with an executor that starts nothing."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import Engine, text

from tests.benchmarks.control_plane import seed
from tests.support.clock import MovableClock
from tests.support.core import open_core
from tests.support.executor import ScriptedExecutor
from tunesmith_server.scheduling.scheduler import Scheduler

_JOBS = 500


async def claims_per_second(url: str, home: Path, engine: Engine, model: str, file_id: str) -> float:
    """Passes of the scheduler over a queue until every job of it is claimed."""
    with engine.begin() as connection:
        # What the load before has left waiting would be claimed first.
        connection.execute(text("UPDATE fine_tunes SET state = 'paused' WHERE state IN ('validating_files', 'queued')"))
        connection.execute(text("UPDATE attempts SET state = 'ended' WHERE state = 'live'"))
    seed.queued_jobs(engine, _JOBS, model, file_id)
    clock = MovableClock(time.time())
    async with open_core(home, clock, database_url=url, max_concurrent_runs=_JOBS) as core:
        executor = ScriptedExecutor(tuple(f"slot-{number}" for number in range(_JOBS)))
        scheduler = Scheduler(core, executor, lambda: True)
        started = time.perf_counter()
        while len(executor.launches) < _JOBS:
            before = len(executor.launches)
            await scheduler.run_once()
            if len(executor.launches) == before:
                raise AssertionError(f"the scheduler stopped at {before} of {_JOBS} jobs")
        return _JOBS / (time.perf_counter() - started)
