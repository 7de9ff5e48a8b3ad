"""A project's own limits, the installation's defaults, and what is refused beyond them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.core import open_core
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.config import Settings
from tunesmith_server.db.tables import ProjectRow
from tunesmith_server.errors import InvalidRequestError, QuotaExceededError
from tunesmith_server.fine_tunes.model_limits import ModelLimitsService
from tunesmith_server.projects import quotas
from tunesmith_server.projects.administration import Administration
from tunesmith_server.projects.key_lookup import KeyLookup


def test_a_projects_own_value_goes_before_the_installations(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, quota_max_jobs=5, quota_max_running=2)
    read = quotas.read_quotas({"max_jobs": 9, "share": 2}, settings)
    assert (read.max_jobs, read.max_running, read.max_storage_bytes, read.share) == (9, 2, None, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_jobs", -1),
        ("max_jobs", 1.5),
        ("max_jobs", 2**63),
        ("requests_per_minute", 0),
        ("share", 0),
        ("share", 1e9),
    ],
)
def test_values_that_mean_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        quotas.check_quota(name, value)
    assert raised.value.param == f"quotas.{name}"
    quotas.check_quota(name, None)


async def set_quotas(platform: Platform, **values: int) -> None:
    async with platform.core.database.write() as session:
        project = await session.get(ProjectRow, PRINCIPAL.project_id)
        assert project is not None
        project.quotas = values


async def test_one_job_too_many_is_refused_until_another_has_ended(each_platform: Platform) -> None:
    await set_quotas(each_platform, max_jobs=1)
    first = await each_platform.create()
    with pytest.raises(QuotaExceededError) as raised:
        await each_platform.create(suffix="second")
    assert (raised.value.code, raised.value.retry_after) == ("quota_exceeded", 30)
    await each_platform.fine_tunes.cancel(PRINCIPAL, first)
    await each_platform.create(suffix="second")


async def test_where_no_job_is_allowed_nobody_is_told_to_wait(platform: Platform) -> None:
    await set_quotas(platform, max_jobs=0)
    with pytest.raises(QuotaExceededError) as raised:
        await platform.create()
    assert (raised.value.code, raised.value.retry_after) == ("quota_exceeded", None)


async def test_a_cancelled_job_counts_no_more_though_its_run_is_still_ending(each_platform: Platform) -> None:
    await set_quotas(each_platform, max_jobs=1)
    identity = await each_platform.start_training()
    await each_platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)
    limits = ModelLimitsService(each_platform.core)
    assert [each.active_jobs for each in await limits.list(PRINCIPAL)] == [0]
    await each_platform.create(suffix="second")
    assert [each.active_jobs for each in await limits.list(PRINCIPAL)] == [1]


async def test_of_jobs_made_at_the_same_moment_no_more_come_in_than_may(each_platform: Platform) -> None:
    await set_quotas(each_platform, max_jobs=2)
    made = await asyncio.gather(*(each_platform.create(suffix=f"s{n}") for n in range(6)), return_exceptions=True)
    assert sum(isinstance(outcome, QuotaExceededError) for outcome in made) == 4


async def test_quotas_changed_at_the_same_moment_all_hold(each_platform: Platform) -> None:
    administration = Administration(each_platform.core, KeyLookup(each_platform.core))
    names = ("max_jobs", "max_running", "max_storage_bytes", "max_device_seconds")
    await asyncio.gather(*(administration.update("default", quotas={name: 7}) for name in names))
    assert (await administration.get("default")).own_quotas == dict.fromkeys(names, 7)


async def test_storage_counts_what_is_there(each_platform: Platform) -> None:
    core = each_platform.core
    stored = 12 * len(b'{"prompt":"a","completion":"b"}\n')  # the platform's two files have 10 and 2 rows
    await set_quotas(each_platform, max_storage_bytes=stored + 10)
    async with core.database.write() as session:
        await quotas.require_storage(session, core.settings, "default", 10)
        await quotas.require_storage(session, core.settings, "other", 10**12)
        with pytest.raises(QuotaExceededError) as raised:
            await quotas.require_storage(session, core.settings, "default", 11)
    assert raised.value.code == "storage_quota_exceeded"


async def test_an_installation_may_limit_everybody(tmp_path: Path) -> None:
    async with open_core(tmp_path / "home", quota_max_storage_bytes=5) as core, core.database.write() as session:
        with pytest.raises(QuotaExceededError):
            await quotas.require_storage(session, core.settings, "anybody", 6)
