"""Usage is counted once per hour, key and model, and read in buckets without holes."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest

from tests.support.administration import Installation
from tests.support.clock import MovableClock
from tests.support.factories import make_platform
from tunesmith_proto.projects.v1 import usage_pb2, usage_pb2_grpc
from tunesmith_server.core import Core
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.projects.usage import UsageQuery, UsageService
from tunesmith_server.projects.usage_repository import Kind, UsageFilter, UsageLine

HOUR, DAY = 3600, 86400
START = 20_000 * DAY


@pytest.fixture
async def platform_usage(each_core: Core, clock: MovableClock) -> UsageService:
    await make_platform(each_core)
    clock.now = START + 2 * DAY + 10
    return UsageService(each_core)


def line(hour: int, tokens: int, key: str = "k", project: str = "default", kind: Kind = "inference") -> UsageLine:
    return UsageLine(project, key, "m", kind, START + hour * HOUR + 5, 1, tokens, 1)


async def test_a_batch_counts_once(platform_usage: UsageService) -> None:
    await platform_usage.take_report("gateway", 1, [line(0, 10), line(0, 5)])
    await platform_usage.take_report("gateway", 1, [line(0, 10), line(0, 5)])
    await platform_usage.take_report("gateway", 2, [line(1, 1)])
    await platform_usage.take_report("another", 1, [line(0, 100), line(0, 1, project="gone")])
    page = await platform_usage.read(UsageQuery(START, START + DAY))
    [sums] = page.buckets[0].sums
    assert (sums.requests, sums.input_tokens, sums.output_tokens) == (4, 116, 4)


async def test_gateways_that_report_the_same_keys_do_not_wait_for_each_other(platform_usage: UsageService) -> None:
    batch = [line(0, 1, key=f"k{number}") for number in range(40)]
    await asyncio.gather(
        platform_usage.take_report("one", 1, batch), platform_usage.take_report("another", 1, batch[::-1])
    )
    [sums] = (await platform_usage.read(UsageQuery(START, START + DAY))).buckets[0].sums
    assert sums.requests == 80


async def test_buckets_have_no_holes_and_pages_follow_each_other(platform_usage: UsageService) -> None:
    await platform_usage.take_report("gateway", 1, [line(0, 1), line(2, 2), line(25, 4)])
    first = await platform_usage.read(UsageQuery(START + 7, bucket_width="1h", limit=2))
    assert [(bucket.start_time - START, len(bucket.sums)) for bucket in first.buckets] == [(0, 1), (HOUR, 0)]
    second = await platform_usage.read(UsageQuery(START, bucket_width="1h", limit=2, page=first.next_page))
    assert [one.input_tokens for bucket in second.buckets for one in bucket.sums] == [2]
    days = await platform_usage.read(UsageQuery(START))
    assert [[one.input_tokens for one in bucket.sums] for bucket in days.buckets] == [[3], [4], []]
    assert days.next_page is None


async def test_sums_are_grouped_and_filtered(platform_usage: UsageService) -> None:
    lines = [line(0, 1, "a"), line(0, 2, "b"), line(0, 4, "c", "other"), line(0, 8, kind="training")]
    await platform_usage.take_report("gateway", 1, lines)

    async def sums(*groups: Any, **which: Any) -> dict[tuple[str, ...], int]:
        query = UsageQuery(START, START + DAY, group_by=groups, which=UsageFilter(**which))
        [bucket] = (await platform_usage.read(query)).buckets
        return {tuple(one.group[name] for name in groups): one.input_tokens for one in bucket.sums}

    assert await sums() == {(): 15}
    assert await sums("project_id") == {("default",): 11, ("other",): 4}
    assert await sums("kind", "api_key_id", project_ids=["default"]) == {
        ("inference", "a"): 1,
        ("inference", "b"): 2,
        ("training", "k"): 8,
    }
    assert await sums("model", kinds=["inference"], key_ids=["a", "c"]) == {("m",): 5}


async def test_bad_ranges_are_refused(core: Core) -> None:
    for query in (UsageQuery(START, limit=0), UsageQuery(START, limit=32), UsageQuery(0, page="x"), UsageQuery(-1)):
        with pytest.raises(InvalidRequestError):
            await UsageService(core).read(query)


async def test_a_project_sees_its_own_usage_by_either_way(each_installation: Installation) -> None:
    core, usage = each_installation.core, each_installation.part.usage
    now = int(core.clock())
    await usage.take_report("g", 1, [UsageLine(p, "k", "m", "inference", now, 1, 2, 3) for p in ("default", "other")])
    core.clock.advance(HOUR)  # type: ignore[attr-defined]
    async with await each_installation.http("usage.read") as http:
        page = (await http.get("/v1/usage", params={"start_time": now, "bucket_width": "1h"})).json()
    [result] = page["data"][0]["results"]
    assert result == {
        "object": "usage.result",
        "kind": "inference",
        "api_key_id": "k",
        "model": "m",
        "num_requests": 1,
        "input_tokens": 2,
        "output_tokens": 3,
        "device_seconds": 0.0,
    }
    async with each_installation.channel() as channel:
        stub: Any = usage_pb2_grpc.UsageServiceStub(channel)
        metadata = await each_installation.metadata("usage.read")
        asked = usage_pb2.UsageRange(start_time=now, bucket_width="1h")
        answer = await stub.GetUsage(usage_pb2.GetUsageRequest(range=asked), metadata=metadata)
        assert [one.input_tokens for bucket in answer.buckets for one in bucket.sums] == [2]
        asked.bucket_width = "1m"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetUsage(usage_pb2.GetUsageRequest(range=asked), metadata=metadata)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
