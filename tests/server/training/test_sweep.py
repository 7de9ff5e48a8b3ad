"""What ended runs left goes; what a job or a user needs stays, whatever else there is."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.training.test_results import commit, complete
from tests.support.clock import MovableClock
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.files import repository as files
from tunesmith_server.training import sweep
from tunesmith_server.training.sweep import Needs, RunsSweep, orphans

JOBS, EPOCHS, STEPS = ("ftjob-a", "ftjob-ab"), (1, 2, 11), ("", "step-2/", "step-20/", "step-2/deep/")
KEYS = [f"runs/{job}/e{epoch}/{step}x" for job in JOBS for epoch in EPOCHS for step in STEPS]


@pytest.fixture
def clock() -> MovableClock:
    """Starts now: a store tells the age of its objects by the machine's clock."""
    return MovableClock(time.time())


async def keys(platform: Platform) -> list[str]:
    return await platform.core.store.list("runs/")


async def swept(platform: Platform) -> list[str]:
    """What is left after a pass without any grace."""
    await RunsSweep(platform.core, grace_seconds=-5).run_once()
    return await keys(platform)


async def test_a_live_run_keeps_everything(each_platform: Platform) -> None:
    identity = await each_platform.start_training()
    await commit(each_platform, identity, 2)
    await each_platform.core.store.put_bytes(f"runs/{identity.job_id}/e2/step-4/half", b"x")
    before = await keys(each_platform)
    assert await swept(each_platform) == before
    await each_platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)
    assert await swept(each_platform) == before, "its run may still exist"


async def test_a_job_that_can_resume_keeps_its_checkpoints(each_platform: Platform, clock: MovableClock) -> None:
    platform = each_platform
    identity = await platform.start_training()
    await commit(platform, identity, 2)
    kept = await keys(platform)
    await platform.core.store.put_bytes(f"runs/{identity.job_id}/e2/step-4/half", b"x")
    await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_INFRASTRUCTURE))
    await platform.end_run(identity)
    assert await swept(platform) == kept
    clock.advance(5)
    again = await platform.claim(identity.job_id)
    await platform.core.store.put_bytes(f"runs/{identity.job_id}/e2/zombie", b"x")
    await platform.core.store.put_bytes(f"runs/{identity.job_id}/e3/step-4/half", b"x")
    assert await swept(platform) == [*kept, f"runs/{identity.job_id}/e3/step-4/half"]
    assert {file.path for file in (await platform.training.get_spec(again)).resume.files}


async def test_an_ended_job_keeps_its_result_files_only(each_platform: Platform) -> None:
    platform = each_platform
    identity = await platform.start_training()
    artifact = await commit(platform, identity, 2)
    await complete(platform, identity, 2, artifact)
    await platform.end_run(identity)
    prefix = f"runs/{identity.job_id}/e2"
    assert await swept(platform) == [f"{prefix}/evaluation.jsonl", f"{prefix}/results.csv"]
    assert len(await platform.core.store.list("revisions/")) == 4

    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    async with platform.core.database.write() as session:
        await files.mark_deleted(session, job.result_files[0], 1)
    assert len(await swept(platform)) == 1


async def test_young_objects_stay(platform: Platform, clock: MovableClock) -> None:
    await platform.core.store.put_bytes("runs/ftjob-gone/e1/x", b"x")
    await platform.core.store.put_bytes("runs/readme", b"x")
    clock.advance(sweep.GRACE_SECONDS - 60)
    await RunsSweep(platform.core).run_once()
    assert len(await keys(platform)) == 2
    clock.advance(120)
    await RunsSweep(platform.core).run_once()
    assert await keys(platform) == ["runs/readme"], "what is no run's is not ours to judge"


async def test_old_logs_go(platform: Platform) -> None:
    logs = platform.core.settings.home / "logs"
    logs.mkdir()
    for name, days in (("old", 31), ("young", 29)):
        (logs / f"{name}.log").touch()
        then = platform.core.clock() - days * 86400
        os.utime(logs / f"{name}.log", (then, then))
    await RunsSweep(platform.core).run_once()
    assert [path.name for path in logs.iterdir()] == ["young.log"]


@given(
    live=st.sets(st.tuples(st.sampled_from(JOBS), st.sampled_from(EPOCHS))),
    prefixes=st.sets(st.sampled_from([f"runs/{job}/e{epoch}/step-2" for job in JOBS for epoch in EPOCHS])),
)
def test_nothing_needed_is_an_orphan_and_everything_else_is(live: set[tuple[str, int]], prefixes: set[str]) -> None:
    needed = {key for key in KEYS if any(key.startswith(f"runs/{job}/e{epoch}/") for job, epoch in live)}
    needed |= {key for key in KEYS if any(key.startswith(f"{prefix}/") for prefix in prefixes)}
    assert set(orphans(KEYS, Needs(live, prefixes))) == set(KEYS) - needed
