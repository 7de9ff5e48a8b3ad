"""Who waits for a row is woken by its commit, and by nothing else."""

from __future__ import annotations

import pytest

from tunesmith_server.core import Core
from tunesmith_server.db.news import tell_after_commit


async def test_a_commit_wakes_those_who_wait_for_its_topics(core: Core) -> None:
    news = core.database.news
    with news.about("job-1") as mine, news.about("job-1") as also_mine, news.about("job-2") as other:
        async with core.database.write() as session:
            tell_after_commit(session, "job-1")
            assert not mine.is_set(), "nobody may look before the commit"
        assert (mine.is_set(), also_mine.is_set(), other.is_set()) == (True, True, False)
        news.announce_all()
        assert other.is_set()


async def test_what_was_rolled_back_is_no_news(core: Core) -> None:
    with core.database.news.about("job-1") as woken:
        with pytest.raises(RuntimeError, match="no commit"):
            await fail_after_telling(core)
        assert not woken.is_set()


async def fail_after_telling(core: Core) -> None:
    """A transaction that ends badly."""
    async with core.database.write() as session:
        tell_after_commit(session, "job-1")
        raise RuntimeError("no commit")
