"""The output of runs: the live one's, a kept one's, and nobody else's."""

from __future__ import annotations

import pytest

from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.auth import Principal
from tunesmith_server.errors import InvalidRequestError, NotFoundError
from tunesmith_server.fine_tunes.logs import RunLogs
from tunesmith_server.tail import MAX_TAIL_BYTES


class Forgetful:
    """An executor that has forgotten every run."""

    async def read_log(self, attempt_id: str, max_bytes: int = 0) -> str:
        """Nothing."""
        return ""


async def test_the_newest_attempt_is_read_unless_another_is_asked_for(platform: Platform) -> None:
    logs = RunLogs(platform.core, platform.executor)
    identity = await platform.start_training()
    assert await logs.read(PRINCIPAL, identity.job_id) == f"log of {identity.attempt_id}\n"
    earlier = await logs.read(PRINCIPAL, identity.job_id, attempt=1)
    assert earlier.startswith("log of attempt-")
    assert identity.attempt_id not in earlier


async def test_the_kept_end_is_read_once_the_run_is_forgotten(platform: Platform) -> None:
    logs = RunLogs(platform.core, Forgetful())
    identity = await platform.start_preflight()
    assert await logs.read(PRINCIPAL, identity.job_id) == ""
    kept = platform.core.settings.home / "logs" / f"{identity.attempt_id}.log"
    kept.parent.mkdir()
    kept.write_text("first\nlast\n")
    assert await logs.read(PRINCIPAL, identity.job_id, tail_bytes=5) == "last\n"


@pytest.mark.parametrize("attempt", [-1, 0, 2, 2**70])
async def test_an_attempt_that_never_was_has_no_log(platform: Platform, attempt: int) -> None:
    identity = await platform.start_preflight()
    with pytest.raises(NotFoundError) as caught:
        await RunLogs(platform.core, platform.executor).read(PRINCIPAL, identity.job_id, attempt=attempt)
    assert (caught.value.code, caught.value.param) == ("attempt_not_found", "attempt")


async def test_a_job_that_has_not_run_and_other_projects_have_no_log(platform: Platform) -> None:
    logs = RunLogs(platform.core, platform.executor)
    job_id = await platform.create()
    with pytest.raises(NotFoundError):
        await logs.read(PRINCIPAL, job_id)
    with pytest.raises(NotFoundError) as caught:
        await logs.read(Principal(project_id="other", key_id="key-2"), job_id)
    assert caught.value.code == "fine_tune_not_found"


@pytest.mark.parametrize("tail_bytes", [0, -1, 2**21])
async def test_the_end_has_a_size_within_limits(platform: Platform, tail_bytes: int) -> None:
    with pytest.raises(InvalidRequestError):
        await RunLogs(platform.core, platform.executor).read(PRINCIPAL, "ftjob-x", tail_bytes=tail_bytes)


@pytest.mark.parametrize(
    "query", ["expires=1&signature=00ff", "X-Amz-Expires=9&X-Amz-Signature=00ff&x-id=GetObject", "Signature=00ff"]
)
async def test_signed_urls_cannot_be_taken_from_a_log(platform: Platform, query: str) -> None:
    identity = await platform.start_preflight()
    kept = platform.core.settings.home / "logs" / f"{identity.attempt_id}.log"
    kept.parent.mkdir()
    kept.write_text(f'GET http://store/files/a?{query} "HTTP/1.1 200 OK"\nwhat?\n')
    text = await RunLogs(platform.core, Forgetful()).read(PRINCIPAL, identity.job_id)
    assert text == 'GET http://store/files/a?… "HTTP/1.1 200 OK"\nwhat?\n'


@pytest.mark.parametrize("before", ["", "x" * MAX_TAIL_BYTES])
async def test_no_end_of_a_log_begins_in_the_middle_of_a_signature(platform: Platform, before: str) -> None:
    identity = await platform.start_preflight()
    kept = platform.core.settings.home / "logs" / f"{identity.attempt_id}.log"
    kept.parent.mkdir()
    url, rest = "http://store/files/a?expires=1&signature=00ff ", "is refused\n"
    kept.write_text(f"{before}{url}{rest}")
    logs = RunLogs(platform.core, Forgetful())
    ends = [await logs.read(PRINCIPAL, identity.job_id, tail_bytes=size) for size in range(1, len(url) + len(rest) + 1)]
    assert not any("00ff" in end or "sign" in end for end in ends)
    assert all(end.endswith(rest[-min(size, len(rest)) :]) for size, end in enumerate(ends, start=1))


async def test_a_line_full_of_question_marks_is_read_in_no_time(platform: Platform) -> None:
    identity = await platform.start_preflight()
    kept = platform.core.settings.home / "logs" / f"{identity.attempt_id}.log"
    kept.parent.mkdir()
    marks = "?" * (MAX_TAIL_BYTES - 9)
    kept.write_text(marks)
    log = RunLogs(platform.core, Forgetful())
    assert await log.read(PRINCIPAL, identity.job_id, tail_bytes=MAX_TAIL_BYTES) == marks
