"""Lists that span several pages."""

from __future__ import annotations

from tests.support.fake_api import FakeApi
from tunesmith import AsyncTunesmith, Tunesmith


class TestPage:
    def test_iterating_walks_all_pages(self, api: FakeApi, client: Tunesmith) -> None:
        ids = [api.add_job() for _ in range(7)]
        assert [job.id for job in client.fine_tunes.list(limit=3)] == ids[::-1]
        assert [request.query.get("after") for request in api.received] == [None, ids[4], ids[1]]
        assert {request.query["limit"] for request in api.received} == {"3"}

    def test_one_page_at_a_time(self, api: FakeApi, client: Tunesmith) -> None:
        ids = [api.add_job() for _ in range(3)]
        page = client.fine_tunes.list(limit=2)
        assert ([job.id for job in page.data], page.has_more) == ([ids[2], ids[1]], True)
        following = page.next_page()
        assert following is not None
        assert ([job.id for job in following.data], following.has_more) == ([ids[0]], False)
        assert following.next_page() is None

    def test_pages_are_fetched_when_they_are_reached(self, api: FakeApi, client: Tunesmith) -> None:
        for _ in range(5):
            api.add_job()
        next(iter(client.fine_tunes.list(limit=1)))
        assert len(api.received) == 1

    def test_empty_list(self, client: Tunesmith) -> None:
        assert list(client.fine_tunes.list()) == []

    def test_iterating_twice(self, api: FakeApi, client: Tunesmith) -> None:
        api.add_job()
        page = client.fine_tunes.list()
        assert len(list(page)) == len(list(page)) == 1


class TestPageRequest:
    async def test_awaited_it_is_the_first_page(self, api: FakeApi, async_client: AsyncTunesmith) -> None:
        ids = [api.add_job() for _ in range(3)]
        page = await async_client.fine_tunes.list(limit=2)
        assert [job.id for job in page.data] == [ids[2], ids[1]]
        assert [job.id async for job in page] == ids[::-1]

    async def test_iterated_it_is_the_whole_list(self, api: FakeApi, async_client: AsyncTunesmith) -> None:
        ids = [api.add_job() for _ in range(3)]
        assert [job.id async for job in async_client.fine_tunes.list(limit=1)] == ids[::-1]
