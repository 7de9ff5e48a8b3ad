"""Owns how the id of a job becomes its row or an error.

It must not know what is done with the row.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import NotFoundError
from tunesmith_server.fine_tunes import repository
from tunesmith_server.paging import is_id


async def require_job(session: AsyncSession, principal: Principal, job_id: str) -> FineTuneRow:
    """The project's job; raises NotFoundError, for an estimate as well."""
    job = await repository.get(session, job_id, principal.project_id) if is_id(job_id) else None
    if job is None or job.kind != repository.JOB:
        message = f"There is no fine-tuning job {job_id[:80]!r} in this project. GET /v1/fine_tuning/jobs lists them."
        raise NotFoundError("fine_tune_not_found", message, param="fine_tuning_job_id")
    return job
