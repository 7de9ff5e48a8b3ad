"""Owns how bytes become a stored file: received, checked if they are a dataset or a model, put where files lie.

It must not know whether they came in one piece or in parts; whoever asks enters the row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tunesmith_server.core import Core
from tunesmith_server.db.tables import FileRow
from tunesmith_server.errors import InvalidRequestError, Problem, TunesmithError, UnavailableError
from tunesmith_server.failpoints import reach
from tunesmith_server.files import drafts
from tunesmith_server.files.dataset_check import DatasetReport, check_dataset, check_plain_text, is_plain_text
from tunesmith_server.files.limits import DATASET_PURPOSE, MODEL_PURPOSE, SizeLimit, display_name
from tunesmith_server.ids import new_id
from tunesmith_server.registry.foreign_models import model_problems

FILES_FOLDER = "files"


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is told of a file before its bytes; the lifetime is in seconds."""

    project_id: str
    filename: str
    purpose: str
    lifetime: int | None
    md5: str | None = None
    """Lower-case hex of what the bytes must have."""


class Intake:
    """Takes bytes in."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @asynccontextmanager
    async def stored(self, new: NewFile, chunks: AsyncIterator[bytes], limit: SizeLimit) -> AsyncIterator[FileRow]:
        """Stores the bytes and gives the row that the block is to enter.

        Raises InvalidRequestError; with `problems`, all of them, when a dataset cannot be trained on or a model served.
        Object first: a crash before the row leaves bytes that the sweep removes, never a row without bytes.
        """
        async with drafts.receive(self._core.settings.spool, chunks, limit, with_md5=new.md5 is not None) as draft:
            if draft.md5 != new.md5:
                message = f"The bytes have the MD5 {draft.md5}, not {new.md5}. Check the order of the parts."
                raise InvalidRequestError("md5_mismatch", message, param="md5")
            rows = await _checked_rows(draft.path, new.filename) if new.purpose == DATASET_PURPOSE else None
            if new.purpose == MODEL_PURPOSE:
                _refuse(await asyncio.to_thread(model_problems, draft.path, self._core.settings.max_lora_rank))
            if draft.size == 0:
                raise InvalidRequestError("empty_file", "The file has no bytes.", param="file")
            row = self._row(new, draft, rows)
            await self._core.store.put_file(row.storage_key, draft.path)
        reach("file.stored")
        try:
            yield row
        except TunesmithError:
            # Only what was surely not committed; after any other failure the sweep asks the database.
            with suppress(UnavailableError):
                await self._core.store.delete(row.storage_key)
            raise
        reach("file.written")

    def _row(self, new: NewFile, draft: drafts.Draft, rows: int | None) -> FileRow:
        file_id, now = new_id("file-"), int(self._core.clock())
        return FileRow(
            id=file_id,
            project_id=new.project_id,
            filename=display_name(new.filename),
            purpose=new.purpose,
            bytes=draft.size,
            sha256=draft.sha256,
            status="processed",
            rows=rows,
            storage_key=f"{FILES_FOLDER}/{new.project_id}/{file_id}",
            created_at=now,
            expires_at=None if new.lifetime is None else now + new.lifetime,
        )


async def _checked_rows(path: Path, filename: str) -> int:
    report = await asyncio.to_thread(_check, path, filename)
    if report.problem_count:
        raise _refusal(report.problems, report.problem_count)
    return report.rows


def _check(path: Path, filename: str) -> DatasetReport:
    with path.open("rb") as file:
        return check_plain_text(file) if is_plain_text(display_name(filename)) else check_dataset(file)


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise _refusal(problems, len(problems))


def _refusal(problems: Sequence[Problem], count: int) -> InvalidRequestError:
    first, more = problems[0], count - 1
    message = first.message
    if more:
        message += f" There {'is 1 more problem' if more == 1 else f'are {more} more problems'} in the file."
    return InvalidRequestError(first.code, message, param="file", problems=problems)
