"""Owns which checkpoints of a job are kept, and the retirement of the others: their names end, sweeps take their bytes.

It must not know bytes. Every pass may be cut off anywhere and is made good by the next one; replicas may all run it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence, Set

from tunesmith_server.core import Core
from tunesmith_server.db.tables import CheckpointRow
from tunesmith_server.deployments import repository as deployments
from tunesmith_server.registry import repository as registry
from tunesmith_server.training import repository

KEPT_NEWEST = 3
KEPT = KEPT_NEWEST + 1
"""A job with no more checkpoints than this keeps all of them."""

_JOBS_PER_PASS = 1000

_log = logging.getLogger(__name__)


class CheckpointRetention:
    """Keeps of each job the newest three checkpoints, the best one, and what somebody refers to."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def run_once(self) -> None:
        """One pass over the jobs that have too many."""
        async with self._core.database.read() as session:
            job_ids = await repository.jobs_with_more_checkpoints(session, KEPT, _JOBS_PER_PASS)
        for job_id in job_ids:
            await self._retire(job_id)

    async def _retire(self, job_id: str) -> None:
        now = int(self._core.clock())
        async with self._core.database.write() as session:
            await registry.hold_changes(session)
            rows = await repository.all_checkpoints(session, job_id)
            referred = await repository.referred_checkpoints(session, job_id)
            deployed = await deployments.models_within_reach(session)
            retired = superfluous(rows, referred | {row.id for row in rows if row.model_name in deployed})
            for row in retired:
                row.removed_at = now
                await registry.retire_model(session, row.model_name, now)
            await session.flush()
            await registry.retire_revisions(session, {row.revision for row in retired}, now)
        if retired:
            steps = [row.step for row in retired]
            _log.info("retired checkpoints", extra={"fields": {"job": job_id, "steps": steps}})


def superfluous(rows: Sequence[CheckpointRow], referred: Set[str]) -> list[CheckpointRow]:
    """Those of a job's checkpoints (in any order) that it need not keep; `referred` are ids that others need."""
    if len(rows) <= KEPT:
        return []
    by_step = sorted(rows, key=lambda row: row.step)
    # A damaged one goes when its time has come, and takes the place of none that a run can resume from or end with.
    sound = [row for row in by_step if row.damaged_at is None]
    kept = {row.id for row in (*by_step[-KEPT_NEWEST:], *sound[-KEPT_NEWEST:], *_best(sound))} | referred
    return [row for row in rows if row.id not in kept]


def _best(rows: Iterable[CheckpointRow]) -> list[CheckpointRow]:
    """The one with the lowest loss on all validation rows, the earliest of equals: what the trainer takes for best."""
    measured = [row for row in rows if row.metrics.get("full_valid_loss") is not None]
    return sorted(measured, key=lambda row: (row.metrics["full_valid_loss"], row.step))[:1]
