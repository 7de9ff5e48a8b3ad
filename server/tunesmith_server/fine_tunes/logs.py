"""Owns what users can read of a run's own output.

It must not know how a machine keeps it: while the run is there its executor is asked, afterwards the kept file in the
home's `logs`. Only the end of the output is kept, on the control plane that saw the run end.
"""

from __future__ import annotations

import asyncio
import re
from typing import Protocol

from sqlalchemy import select

from tunesmith_server.auth import Principal
from tunesmith_server.core import Core
from tunesmith_server.db.tables import AttemptRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.fine_tunes.lookup import require_job
from tunesmith_server.tail import MAX_TAIL_BYTES, read_tail

DEFAULT_TAIL_BYTES = 65536
_LONGEST_CHARACTER = 4  # bytes, of which a cut may leave a part that is left out

# Libraries of the run may print the presigned URLs that it uses; who reads a log shall not get to use them.
# A query begins anew at each question mark, so that a line full of them is read once and not once for each.
_SIGNED_QUERY = re.compile(r"(?<=\?)[^\s\"'<>?]*signature=[^\s\"'<>]*", re.IGNORECASE)


class LogSource(Protocol):
    """The part of an executor that keeps the output of runs."""

    async def read_log(self, attempt_id: str, max_bytes: int = DEFAULT_TAIL_BYTES) -> str:
        """The end of the run's output, or an empty string."""


class RunLogs:
    """Logs of the runs of one project's jobs."""

    def __init__(self, core: Core, source: LogSource) -> None:
        self._core = core
        self._source = source

    async def read(
        self, principal: Principal, job_id: str, *, attempt: int | None = None, tail_bytes: int = DEFAULT_TAIL_BYTES
    ) -> str:
        """The end of what an attempt (1, 2, …; None: the newest) wrote; empty when nothing is left of it.

        Signatures in URLs are left out.
        The validation of the files counts as an attempt. Raises NotFoundError (`attempt_not_found`).
        """
        if not 1 <= tail_bytes <= MAX_TAIL_BYTES:
            message = f"`tail_bytes` must be from 1 to {MAX_TAIL_BYTES}."
            raise InvalidRequestError("invalid_value", message, param="tail_bytes")
        attempt_id = await self._attempt_id(principal, job_id, attempt)
        # All of it, so that nobody can ask for an end that begins in the middle of a signature.
        text = await self._source.read_log(attempt_id, MAX_TAIL_BYTES)
        if not text:
            kept = self._core.settings.home / "logs" / f"{attempt_id}.log"
            text = await asyncio.to_thread(read_tail, kept, MAX_TAIL_BYTES)
        return _end(_SIGNED_QUERY.sub("…", _whole_words(text)), tail_bytes)

    async def _attempt_id(self, principal: Principal, job_id: str, attempt: int | None) -> str:
        async with self._core.database.read() as session:
            job = await require_job(session, principal, job_id)
            wanted = job.epoch if attempt is None else attempt
            query = select(AttemptRow.id).where(AttemptRow.job_id == job_id, AttemptRow.epoch == wanted)
            found = await session.scalar(query) if 0 < wanted <= job.epoch else None
        if found is None:
            message = f"The job has had {job.epoch} attempts so far; there is no log of another one. Ask again later."
            raise NotFoundError("attempt_not_found", message, param="attempt")
        return found


def _whole_words(text: str) -> str:
    """Without the first word where the text is so long that it may be the rest of one."""
    if len(text.encode()) < MAX_TAIL_BYTES - _LONGEST_CHARACTER:
        return text
    gap = re.search(r"\s", text)
    return text[gap.end() :] if gap else ""


def _end(text: str, most: int) -> str:
    return text.encode()[-most:].decode(errors="ignore")
