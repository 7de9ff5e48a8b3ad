"""Owns what goes into a job's report: the job, its numbers, and the flipped rows that its caller may read.

It must not know HTML or transports. Nothing of it is stored: rows are read from the user's file, while that exists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import FileRow, FineTuneRow
from tunesmith_server.files import repository as files
from tunesmith_server.fine_tunes import repository, views
from tunesmith_server.fine_tunes.history_schemas import MetricsObject
from tunesmith_server.fine_tunes.lookup import require_job
from tunesmith_server.fine_tunes.report_page import Report, render
from tunesmith_server.projects.scopes import granted
from tunesmith_server.storage.base import ObjectNotFoundError, ObjectStore

_STEPS = 2000
"""About so many are read: twice what the curve draws of them, however long the run was."""
_MAX_READ_BYTES = 64 * 1024**2
"""Of the user's file, from its beginning: rows further back are told by their line only."""
_READ_FILES = "files.read"


class ReportsService:
    """Reports of the jobs of one project at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def html(self, principal: Principal, job_id: str) -> str:
        """The job's report as it is now; raises NotFoundError."""
        now = int(self._core.clock())
        async with self._core.database.read() as session:
            job = await require_job(session, principal, job_id)
            stored = await repository.count_metrics(session, job_id)
            losses = await repository.list_losses(session, job_id, stored=stored, about=_STEPS)
            file_id = job.validation_file_id or job.training_file_id
            file = await files.get_live(session, principal.project_id, file_id, now)
        shown = views.fine_tune(job)
        wanted = {flip.row for flip in shown.evaluation.flips} if shown.evaluation else set()
        texts = {}
        if file is not None and wanted and granted(principal.scopes, _READ_FILES):
            texts = await _texts(self._core.store, file, wanted)
        steps = [MetricsObject(**row._mapping) for row in losses]
        report = Report(shown, steps, stored, _settings(job), texts)
        return await asyncio.to_thread(render, report)


def _settings(job: FineTuneRow) -> list[dict[str, str]]:
    resolved: list[dict[str, str]] = (job.report or {}).get("resolved") or []
    return resolved


async def _texts(store: ObjectStore, file: FileRow, wanted: Collection[int]) -> dict[int, str]:
    """The lines (1, 2, …) of the file that are wanted and lie within the first bytes."""
    content = bytearray()
    lines, last = 0, max(wanted)
    try:
        async for chunk in store.read(file.storage_key):
            content += chunk
            lines += chunk.count(b"\n")
            if lines >= last or len(content) >= _MAX_READ_BYTES:
                break
    except ObjectNotFoundError:
        return {}
    return await asyncio.to_thread(_lines, content, wanted)


def _lines(content: bytearray, wanted: Collection[int]) -> dict[int, str]:
    split = content.split(b"\n")
    return {row: split[row - 1].decode("utf-8", errors="replace") for row in wanted if row <= len(split)}
