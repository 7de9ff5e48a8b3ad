"""What each base model takes, and what the project has on it."""

from __future__ import annotations

from tests.support.artifacts import BASE_ID
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_server.auth import Principal
from tunesmith_server.db.tables import ProjectRow
from tunesmith_server.fine_tunes.model_limits import ModelLimitsService


async def test_limits_count_the_projects_own_live_jobs(platform: Platform) -> None:
    await platform.create()
    await platform.fine_tunes.cancel(PRINCIPAL, await platform.create())
    async with platform.core.database.write() as session:
        project = await session.get(ProjectRow, PRINCIPAL.project_id)
        assert project is not None
        project.quotas = {"max_jobs": 7, "max_running": 2}

    (mine,) = await ModelLimitsService(platform.core).list(PRINCIPAL)
    (theirs,) = await ModelLimitsService(platform.core).list(Principal(project_id="other", key_id="k"))

    settings = platform.core.settings
    assert mine.model_dump() == {
        "object": "fine_tuning.model_limits",
        "model": BASE_ID,
        "max_total_jobs": 7,
        "max_concurrent_jobs": 2,
        "active_jobs": 1,
        "context_length": mine.context_length,
        "max_lora_rank": settings.max_lora_rank,
        "methods": ["supervised", "dpo", "continued_pretraining"],
        "weights": ["lora", "full"],
    }
    assert (theirs.active_jobs, theirs.max_total_jobs) == (0, None)
