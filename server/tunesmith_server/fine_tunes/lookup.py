"""Owns how the ids, cursors and page sizes of a call become rows or errors.

It must not know what is done with the rows. Text that cannot be an id of ours never reaches the database, which may
choke on it.
"""

from __future__ import annotations

import re

from sqlalchemy.ext.asyncio import AsyncSession

from tunesmith_server.auth import Principal
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.fine_tunes import repository

MAX_PAGE = 100

_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


async def require_job(session: AsyncSession, principal: Principal, job_id: str) -> FineTuneRow:
    """The project's job; raises NotFoundError, for an estimate as well."""
    job = await repository.get(session, job_id, principal.project_id) if is_id(job_id) else None
    if job is None or job.kind != repository.JOB:
        message = f"There is no fine-tuning job {job_id[:80]!r} in this project. GET /v1/fine_tuning/jobs lists them."
        raise NotFoundError("fine_tune_not_found", message, param="fine_tuning_job_id")
    return job


def is_id(text: str) -> bool:
    """Whether this can be an id of ours."""
    return _ID.fullmatch(text) is not None


def check_limit(limit: int, most: int = MAX_PAGE) -> None:
    """Raises InvalidRequestError unless a page may have this size."""
    if not 1 <= limit <= most:
        raise InvalidRequestError("invalid_value", f"`limit` must be from 1 to {most}.", param="limit")


def unknown_cursor(after: str) -> InvalidRequestError:
    """What to raise when there is nothing to continue after."""
    message = f"There is nothing with the id {after[:80]!r} to continue after. Pass the last id of the page before."
    return InvalidRequestError("invalid_cursor", message, param="after")
