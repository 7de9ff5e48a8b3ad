"""Owns how captures become a file to fine-tune with.

It must not know transports, nor what a file is beyond its bytes: files/ checks and stores it as any other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from tunesmith_server.auth import Principal
from tunesmith_server.captures import repository
from tunesmith_server.captures.content import training_line
from tunesmith_server.captures.repository import WHOLE, CaptureFilter
from tunesmith_server.captures.schemas import CreateDataset
from tunesmith_server.captures.service import CapturesService
from tunesmith_server.core import Core
from tunesmith_server.db.tables import CaptureRow, FileRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.files.limits import DATASET_PURPOSE
from tunesmith_server.files.service import FilesService

_PAGE = 500
_READ_TOGETHER = 64


@dataclass(slots=True)
class Counts:
    """What became of the captures. `duplicates` and `unusable` were left out."""

    rows: int = 0
    duplicates: int = 0
    unusable: int = 0


class DatasetsService:
    """Makes datasets of one project's captures."""

    def __init__(self, core: Core, captures: CapturesService, files: FilesService) -> None:
        self._core = core
        self._captures = captures
        self._files = files

    async def create(self, principal: Principal, request: CreateDataset) -> tuple[FileRow, Counts]:
        """Makes a file of the newest captures that match, in the order in which they came; cut answers are left out.

        Raises InvalidRequestError (`no_captures`), and what the upload of a file raises.
        """
        counts = Counts()
        chosen = await self._choose(principal, request, counts)
        file = await self._files.create(
            principal, filename=request.filename, purpose=DATASET_PURPOSE, chunks=self._lines(chosen[::-1], counts)
        )
        return file, counts

    async def _choose(self, principal: Principal, request: CreateDataset, counts: Counts) -> list[CaptureRow]:
        """Newest first."""
        which = CaptureFilter(request.model or "", request.metadata, request.since, request.until, WHOLE)
        chosen: list[CaptureRow] = []
        prompts: set[str] = set()
        after: CaptureRow | None = None
        while True:
            async with self._core.database.read() as session:
                page = await repository.list_page(
                    session, principal.project_id, which, after=after, limit=_PAGE, ascending=False
                )
            for row in page:
                if request.deduplicate and row.prompt_sha256 in prompts:
                    counts.duplicates += 1
                    continue
                prompts.add(row.prompt_sha256)
                chosen.append(row)
                if len(chosen) == request.limit:
                    return chosen
            if len(page) < _PAGE:
                return chosen
            after = page[-1]

    async def _lines(self, chosen: list[CaptureRow], counts: Counts) -> AsyncIterator[bytes]:
        for start in range(0, len(chosen), _READ_TOGETHER):
            contents = await self._captures.read(chosen[start : start + _READ_TOGETHER])
            lines = [line for content in contents if content is not None and (line := training_line(content))]
            counts.rows += len(lines)
            counts.unusable += len(contents) - len(lines)
            yield b"".join(lines)
        if not counts.rows:
            message = (
                "No whole answer was captured that matches. Ask with fewer conditions, or for keys with `capture`."
            )
            raise InvalidRequestError("no_captures", message)
