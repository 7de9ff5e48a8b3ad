"""Captures become a file that a fine-tune takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.captures import ANSWER, capture
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.captures import datasets
from tunesmith_server.captures.datasets import Counts, DatasetsService
from tunesmith_server.captures.schemas import CreateDataset
from tunesmith_server.captures.service import CapturesService
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.files.service import FilesService


@pytest.fixture
def files(each_platform: Platform) -> FilesService:
    return FilesService(each_platform.core)


@pytest.fixture
def made_of(each_platform: Platform, service: CapturesService, files: FilesService) -> DatasetsService:
    return DatasetsService(each_platform.core, service, files)


async def content(files: FilesService, file_id: str) -> list[dict[str, Any]]:
    """The file's rows."""
    _, chunks = await files.open(PRINCIPAL, file_id)
    return [json.loads(line) for line in b"".join([chunk async for chunk in chunks]).splitlines()]


async def test_the_newest_answer_to_each_prompt_is_a_row_of_a_file_that_jobs_take(
    each_platform: Platform, service: CapturesService, files: FilesService, made_of: DatasetsService
) -> None:
    await service.take([capture(number) for number in range(12)])
    await service.take([capture(20, "What is 2+0?", answer={"role": "assistant", "content": "newer"})])
    await service.take([capture(21, finish_reason="length"), capture(22, answer={"role": "assistant", "content": ""})])
    file, counts = await made_of.create(PRINCIPAL, CreateDataset(filename="mine.jsonl"))
    assert counts == Counts(rows=12, duplicates=1, unusable=1)
    assert (file.rows, file.filename, file.purpose) == (12, "mine.jsonl", "fine-tune")
    rows = await content(files, file.id)
    said = [row["messages"][-1]["content"] for row in rows]
    assert said == [*(str(number + 2) for number in range(1, 12)), "newer"], "in the order in which they came"
    assert (await each_platform.create(training_file=file.id)).startswith("ftjob-")


async def test_conditions_and_limits(
    service: CapturesService, files: FilesService, made_of: DatasetsService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_PAGE", 3)
    await service.take([capture(number, "same", metadata={"n": str(number % 2)}) for number in range(8)])
    for request, ids in (
        (CreateDataset(deduplicate=False), range(8)),
        (CreateDataset(deduplicate=False, limit=2), (6, 7)),
        (CreateDataset(deduplicate=False, metadata={"n": "0"}, limit=3), (2, 4, 6)),
        (CreateDataset(deduplicate=False, since=1_002, until=1_004), (2, 3)),
        (CreateDataset(), (7,)),
    ):
        file, counts = await made_of.create(PRINCIPAL, request)
        rows = await content(files, file.id)
        assert [row["messages"][-1]["content"] for row in rows] == [str(number + 2) for number in ids]
        assert counts.rows == len(rows)


async def test_nothing_makes_no_file(service: CapturesService, files: FilesService, made_of: DatasetsService) -> None:
    before = len((await files.list(PRINCIPAL)).files)
    await service.take([capture(1, messages=[{"role": "nobody", "content": "a"}], answer=ANSWER)])
    for request in (CreateDataset(), CreateDataset(model="unknown")):
        with pytest.raises(InvalidRequestError) as refused:
            await made_of.create(PRINCIPAL, request)
        assert refused.value.code == "no_captures"
    assert len((await files.list(PRINCIPAL)).files) == before
