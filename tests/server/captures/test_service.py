"""Captures are stored once, shown to their project, deleted for good, and bounded by its quota."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.captures import capture
from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.auth import Principal
from tunesmith_server.captures.content import encoded
from tunesmith_server.captures.repository import CaptureFilter
from tunesmith_server.captures.service import CapturesService
from tunesmith_server.db.tables import ProjectRow
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.files.repository import stored_bytes

ALL = CaptureFilter()
STRANGER = Principal("other", "key_9")


async def listed(service: CapturesService, which: CaptureFilter = ALL, **page: Any) -> list[str]:
    """Ids in order."""
    return [each.row.id for each in (await service.list(PRINCIPAL, which, **page)).captures]


async def test_a_report_that_comes_again_is_stored_once(service: CapturesService) -> None:
    reports = [capture(1), capture(2)]
    assert await asyncio.gather(*(service.take(reports) for _ in range(4))) == [0] * 4
    assert await service.take([*reports, capture(3), capture(3)]) == 0
    assert await listed(service) == ["chatcmpl-1", "chatcmpl-2", "chatcmpl-3"]
    found = await service.get(PRINCIPAL, "chatcmpl-2")
    assert (found.content, found.row.model) == (capture(2).content, "toy")


async def test_lists_are_filtered_and_paged(service: CapturesService) -> None:
    tagged = {"team": "a", 'it\'s "odd"': "yes"}
    await service.take([capture(1, metadata=tagged), capture(2, model="other"), capture(3, metadata={"team": "a"})])
    assert await listed(service, CaptureFilter(model="other")) == ["chatcmpl-2"]
    assert await listed(service, CaptureFilter(metadata={"team": "a"})) == ["chatcmpl-1", "chatcmpl-3"]
    assert await listed(service, CaptureFilter(metadata=tagged)) == ["chatcmpl-1"]
    assert await listed(service, CaptureFilter(since=1_002, until=1_003)) == ["chatcmpl-2"]
    assert await listed(service, order="desc", after="chatcmpl-3") == ["chatcmpl-2", "chatcmpl-1"]
    page = await service.list(PRINCIPAL, ALL, limit=2)
    assert ([each.row.id for each in page.captures], page.has_more) == (["chatcmpl-1", "chatcmpl-2"], True)
    await service.delete(PRINCIPAL, "chatcmpl-2")
    assert await listed(service, after="chatcmpl-2") == ["chatcmpl-3"], "deleting while listing works"
    wrongs: tuple[dict[str, Any], ...] = ({"after": "chatcmpl-9"}, {"order": "up"}, {"after": "a\0b"})
    for wrong in wrongs:
        with pytest.raises(InvalidRequestError):
            await service.list(PRINCIPAL, ALL, **wrong)
    with pytest.raises(InvalidRequestError):
        await service.list(PRINCIPAL, CaptureFilter(model="a\0b"))


async def test_nobody_else_sees_or_changes_a_capture(service: CapturesService) -> None:
    await service.take([capture(1)])
    assert (await service.list(STRANGER, ALL)).captures == []
    for name in ("chatcmpl-1", "nothing", "a\0b"):
        with pytest.raises(NotFoundError):
            await service.get(STRANGER, name)
        with pytest.raises(NotFoundError):
            await service.update(STRANGER, name, {})
        with pytest.raises(NotFoundError):
            await service.delete(STRANGER, name)
    assert (await service.update(PRINCIPAL, "chatcmpl-1", {"good": "yes"})).row.user_metadata == {"good": "yes"}


async def test_what_was_deleted_does_not_come_back_with_a_late_report(
    service: CapturesService, each_platform: Platform
) -> None:
    await service.take([capture(1)])
    await service.delete(PRINCIPAL, "chatcmpl-1")
    assert await each_platform.core.store.list("captures/") == []
    await service.take([capture(1)])
    assert await listed(service) == []
    assert await each_platform.core.store.list("captures/") == []


async def test_a_project_stores_no_more_than_its_quota(service: CapturesService, each_platform: Platform) -> None:
    async with each_platform.core.database.write() as session:
        project = await session.get(ProjectRow, "default")
        assert project is not None
        files = await stored_bytes(session, "default")
        project.quotas = {"max_storage_bytes": files + len(encoded(capture(1).content))}
    assert await service.take([capture(1)]) == 0
    assert await service.take([capture(2), capture(3)]) == 2
    assert await listed(service) == ["chatcmpl-1"]
    await service.delete(PRINCIPAL, "chatcmpl-1")
    assert await service.take([capture(4)]) == 0, "what is deleted takes no room"


async def test_a_clock_that_is_ahead_gives_no_capture_a_longer_life(
    service: CapturesService, clock: MovableClock
) -> None:
    await service.take([capture(1, created=2**40)])
    assert (await service.get(PRINCIPAL, "chatcmpl-1")).row.created_at == int(clock.now)
