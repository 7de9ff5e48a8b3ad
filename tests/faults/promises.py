"""Owns what must hold of a platform at rest, whatever has died before: read from database, store and run folders.

It must not know how a platform was broken.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.clock import MovableClock
from tunesmith_server.captures.content import storage_key
from tunesmith_server.captures.sweep import CapturesSweep
from tunesmith_server.core import Core
from tunesmith_server.db.guards import FROZEN_COLUMNS
from tunesmith_server.db.tables import (
    AttemptRow,
    BaseModelRow,
    CaptureRow,
    CheckpointRow,
    EventRow,
    FileRow,
    FineTuneRow,
    ModelRow,
    OutboxRow,
    RevisionRow,
    StepMetricRow,
    TrackedRunRow,
    UploadPartRow,
    WebhookDeliveryRow,
)
from tunesmith_server.files.sweep import FilesSweep
from tunesmith_server.fine_tunes import events
from tunesmith_server.fine_tunes.announcements import EVENT_TYPES
from tunesmith_server.fine_tunes.state import TERMINAL, State
from tunesmith_server.registry.manifest import MANIFEST_NAME, ArtifactKind, ManifestFile, revision_id, tuned_manifest
from tunesmith_server.registry.sweep import RevisionsSweep
from tunesmith_server.training.sweep import RunsSweep

_LAST_WORDS = {State.SUCCEEDED: events.completed().message, State.CANCELLED: events.cancelled().message}

_TWO_DAYS_SECONDS = 2 * 86400

Notes = Callable[[str], Sequence[str]]
"""What the training runs of a job wrote, one line each, which begins with their epoch."""


@dataclass
class Witness:
    """Remembers how jobs and revisions were when they were seen first."""

    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)


async def unrest(core: Core) -> str:
    """What is still under way, or nothing."""
    async with core.database.read() as session:
        open_jobs = await session.scalar(
            select(func.count()).select_from(FineTuneRow).where(FineTuneRow.state.not_in(TERMINAL))
        )
        live = await session.scalar(select(func.count()).select_from(AttemptRow).where(AttemptRow.state == "live"))
        unheard = await session.scalar(
            select(func.count()).select_from(OutboxRow).where(OutboxRow.fanned_out_at.is_(None))
        )
        unsent = await session.scalar(
            select(func.count()).select_from(WebhookDeliveryRow).where(WebhookDeliveryRow.finished_at.is_(None))
        )
        untold = await session.scalar(select(func.count()).select_from(TrackedRunRow))
    folders = [path.name for path in (core.settings.home / "runs").glob("*")]
    under_way = {"jobs": open_jobs, "attempts": live, "news": unheard, "deliveries": unsent, "runs": folders}
    under_way["trackers"] = untold
    return ", ".join(f"{name}: {what}" for name, what in under_way.items() if what)


async def broken_promises(core: Core, witness: Witness, told: Collection[str], notes: Notes) -> list[str]:
    """A sentence for each promise that is broken."""
    broken: list[str] = []
    async with core.database.read() as session:
        jobs = list(await session.scalars(select(FineTuneRow)))
        broken += [f"{job_id} was acknowledged and is gone" for job_id in set(told) - {job.id for job in jobs}]
        for job in jobs:
            broken += [f"{job.id}: {problem}" for problem in await _job_problems(session, job)]
            broken += [f"{job.id}: {problem}" for problem in _changes_after_the_end(job, witness)]
            broken += [f"{job.id}: {problem}" for problem in _runs_at_one_epoch(notes(job.id))]
        revisions = list(await session.scalars(select(RevisionRow)))
        broken += await _dangling_names(session)
    for revision in revisions:
        broken += [
            f"revision {revision.id}: {problem}" for problem in await _revision_problems(core, revision, witness)
        ]
    return broken + await _orphans_after_sweep(core)


async def _job_problems(session: AsyncSession, job: FineTuneRow) -> list[str]:
    problems = []
    attempts = list(await session.scalars(select(AttemptRow).where(AttemptRow.job_id == job.id)))
    if sorted(attempt.epoch for attempt in attempts) != list(range(1, job.epoch + 1)):
        problems.append(f"epochs {sorted(attempt.epoch for attempt in attempts)} under epoch {job.epoch}")
    if sum(attempt.state == "live" for attempt in attempts) > (0 if job.state in TERMINAL else 1):
        problems.append("too many live attempts")
    lines = list(await session.scalars(select(EventRow).where(EventRow.job_id == job.id).order_by(EventRow.number)))
    if [line.number for line in lines] != list(range(1, job.event_count + 1)):
        problems.append(f"events are numbered {[line.number for line in lines]} of {job.event_count}")
    if job.state in TERMINAL:
        problems += _ending_problems(job, lines)
        problems += await _news_problems(session, job)
    if job.state == State.SUCCEEDED and job.resolved is not None:
        problems += await _series_problems(session, job, lines)
    return problems


def _ending_problems(job: FineTuneRow, lines: Sequence[EventRow]) -> list[str]:
    problems = [] if job.lease_token is None else ["an ended job has a lease"]
    said = Counter(line.message for line in lines)
    for state, words in _LAST_WORDS.items():
        if said[words] != (1 if job.state == state else 0):
            problems.append(f"{job.state}, but {words!r} was said {said[words]} times")
    if job.state == State.FAILED and lines[-1].level != "error":
        problems.append("failed without a last word")
    if (job.state == State.SUCCEEDED) != (job.fine_tuned_model is not None):
        problems.append(f"{job.state} with the model {job.fine_tuned_model}")
    return problems


async def _news_problems(session: AsyncSession, job: FineTuneRow) -> list[str]:
    rows = await session.scalars(select(OutboxRow.type).where(OutboxRow.subject_id == job.id))
    endings = [kind for kind in rows if kind != EVENT_TYPES[State.PAUSED]]
    expected = [EVENT_TYPES[State(job.state)]] if job.kind == "job" else []
    return [] if endings == expected else [f"{job.state}, but the outside hears {endings}"]


async def _series_problems(session: AsyncSession, job: FineTuneRow, lines: Sequence[EventRow]) -> list[str]:
    assert job.resolved is not None
    expected = list(range(1, job.resolved.get("total_steps", 0) + 1))  # an import has none
    query = select(StepMetricRow.step).where(StepMetricRow.job_id == job.id).order_by(StepMetricRow.step)
    measured = list(await session.scalars(query))
    told = [line.data["step"] for line in lines if line.type == "metrics" and line.data is not None]
    problems = []
    if measured != expected:
        problems.append(f"steps {measured} were measured")
    if sorted(told) != expected:
        problems.append(f"steps {told} were told")
    return problems


def _changes_after_the_end(job: FineTuneRow, witness: Witness) -> list[str]:
    if job.state not in TERMINAL:
        return []
    now = {column: getattr(job, column) for column in FROZEN_COLUMNS} | {"event_count": job.event_count}
    then = witness.ended.setdefault(job.id, now)
    return [f"{name} was {then[name]!r} and is {now[name]!r} after the end" for name in now if then[name] != now[name]]


def _runs_at_one_epoch(notes: Sequence[str]) -> list[str]:
    counted = Counter(note.split()[0] for note in notes)
    return [f"{count} runs at {epoch}" for epoch, count in counted.items() if count > 1]


async def _dangling_names(session: AsyncSession) -> list[str]:
    known = set(await session.scalars(select(RevisionRow.id)))
    used = set(await session.scalars(select(ModelRow.revision))) | set(
        await session.scalars(select(CheckpointRow.revision))
    )
    return [f"the revision {revision} is named and not there" for revision in used - known]


async def _revision_problems(core: Core, row: RevisionRow, witness: Witness) -> list[str]:
    files = [ManifestFile(**file) for file in row.files]
    manifest = tuned_manifest(ArtifactKind(row.kind), row.base_model_id, row.base_revision, files)
    problems = [] if revision_id(manifest) == row.id else ["its id is not the hash of its manifest"]
    expected = {MANIFEST_NAME: hashlib.sha256(manifest).hexdigest()} | {file.path: file.sha256 for file in files}
    for path, sha256 in expected.items():
        key = f"revisions/{row.id}/{path}"
        digest = hashlib.sha256()
        if await core.store.size(key) is None:
            problems.append(f"{path} is gone")
            continue
        async for chunk in core.store.read(key):
            digest.update(chunk)
        found = digest.hexdigest()
        if found != sha256 or witness.hashes.setdefault(key, found) != found:
            problems.append(f"{path} has other bytes")
    return problems


async def _orphans_after_sweep(core: Core) -> list[str]:
    """Sweeps days later, when nothing is young any more, and compares what is left with what is named."""
    later = replace(core, clock=MovableClock(core.clock() + _TWO_DAYS_SECONDS))
    files, captures = FilesSweep(later), CapturesSweep(later)
    for sweep in (files, files, captures, captures, RunsSweep(later), RevisionsSweep(later)):
        await sweep.run_once()
    async with core.database.read() as session:
        named = set(await session.scalars(select(FileRow.storage_key).where(FileRow.deleted_at.is_(None))))
        named |= set(await session.scalars(select(UploadPartRow.storage_key)))
        kept = await session.scalars(select(CaptureRow).where(CaptureRow.deleted_at.is_(None)))
        named |= {storage_key(row.project_id, row.id) for row in kept}
        for row in await session.scalars(select(RevisionRow)):
            named |= {f"revisions/{row.id}/{name}" for name in [MANIFEST_NAME, *(file["path"] for file in row.files)]}
        for base in await session.scalars(select(BaseModelRow)):
            names = [MANIFEST_NAME, *(file["path"] for file in base.files or [])]
            named |= {f"base_models/{base.revision}/{name}" for name in names}
    found = set(await core.store.list(""))
    orphans = [f"{key} is an orphan" for key in sorted(found - named)]
    return orphans + [f"{key} is named and gone" for key in sorted(named - found)]
