"""A store that errs, hangs up and forgets to answer: jobs still succeed, and nothing wrong is promoted."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.toy_platform import ToyPlatform, TryAgainError
from tests.support.core import open_core
from tests.support.live_server import wait_until
from tests.support.s3_fault_proxy import FAULTS, S3FaultProxy
from tests.support.s3_server import BUCKET, S3Server
from tunesmith_server.errors import UnavailableError

_prefixes = itertools.count()


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3FaultProxy]:
    """A proxy in front of the S3 server; this process itself goes straight to the server."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    with S3FaultProxy(s3_server.endpoint) as running:
        yield running


@pytest.fixture
def platform(tmp_path: Path, proxy: S3FaultProxy) -> Iterator[ToyPlatform]:
    """A platform that reaches its store through the proxy, with its base model imported."""
    storage = f"s3://{BUCKET}/faults-{next(_prefixes)}"
    made = ToyPlatform(tmp_path, {"AWS_ENDPOINT_URL": proxy.endpoint}, storage_url=storage)
    made.start()
    wait_until(lambda: bool(made.server.request("GET", "/models").json()["data"]), 60, "no base model")
    yield made
    proxy.rate = 0.0
    made.close()


@pytest.mark.timeout(240)
def test_a_job_succeeds_on_a_store_that_fails_often(platform: ToyPlatform, proxy: S3FaultProxy) -> None:
    proxy.rate = 0.25
    job_id = create_stubbornly(platform, "one")
    platform.settle()
    proxy.rate = 0.0
    job = platform.server.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert sum(proxy.done.values()) > 3, "hardly anything went wrong"
    platform.check()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_many_jobs_succeed_on_a_store_that_fails_at_every_third_request(
    platform: ToyPlatform, proxy: S3FaultProxy
) -> None:
    proxy.rate = 0.35
    for number in range(10):
        create_stubbornly(platform, f"job-{number}")
        platform.settle()
    proxy.rate = 0.0
    assert {platform.server.job(job_id)["status"] for job_id in platform.jobs.values()} == {"succeeded"}
    assert set(proxy.done) == set(FAULTS)
    platform.check()


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_store_gives_whole_objects_or_an_error(
    proxy: S3FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    plan: list[str | None] = []
    monkeypatch.setattr(proxy, "_choose", lambda _method: plan.pop(0) if plan else None)
    content = bytes(range(256)) * 64
    async with open_core(tmp_path / "home", storage_url=f"s3://{BUCKET}/faults-{next(_prefixes)}") as core:
        plan += [fault, None, fault]
        await core.store.put_bytes("a", content)
        assert await core.store.size("a") == len(content)
        plan[:] = []
        await core.store.copy("a", "b")
        plan += [fault]
        try:
            read = b"".join([chunk async for chunk in core.store.read("b")])
        except UnavailableError:
            read = b"".join([chunk async for chunk in core.store.read("b")])
    assert hashlib.sha256(read).digest() == hashlib.sha256(content).digest()


def create_stubbornly(platform: ToyPlatform, key: str) -> str:
    """Makes a job as a client does that repeats what was refused for the moment."""
    made: list[str] = []

    def is_made() -> bool:
        with suppress(TryAgainError):
            made.append(platform.create(key))
        return bool(made)

    wait_until(is_made, 60, "the file could not be stored")
    return made[0]
