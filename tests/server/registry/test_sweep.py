"""Copies that nobody named go, named ones and young ones stay, on folder and S3."""

from __future__ import annotations

import time

import pytest

from tests.support.artifacts import BASE_ID, adapter_files, publish_base_model, upload
from tests.support.clock import MovableClock
from tunesmith_server.core import Core
from tunesmith_server.registry import claims, sweep
from tunesmith_server.registry.manifest import ArtifactKind
from tunesmith_server.registry.repository import Revision, record_revision
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.registry.sweep import RevisionsSweep


@pytest.fixture
def clock() -> MovableClock:
    """Starts now: a store tells the age of its objects by the machine's clock."""
    return MovableClock(time.time())


async def promote(core: Core, base: str, fill: int) -> Revision:
    files = await upload(core, f"runs/ftjob-1/e1/step-{fill}", adapter_files(fill))
    return await RegistryService(core).promote(
        kind=ArtifactKind.ADAPTER,
        prefix=f"runs/ftjob-1/e1/step-{fill}",
        files=files,
        base_model_id=BASE_ID,
        base_revision=base,
        max_lora_rank=64,
    )


async def test_only_old_copies_that_nobody_named_go(each_core: Core, clock: MovableClock) -> None:
    base = await publish_base_model(each_core)
    named, orphan = await promote(each_core, base, 1), await promote(each_core, base, 2)
    async with each_core.database.write() as session:
        await record_revision(session, named, 0)
    before = await each_core.store.list("revisions/")

    await RevisionsSweep(each_core).run_once()
    assert await each_core.store.list("revisions/") == before, "young"

    clock.advance(sweep.GRACE_SECONDS + 10)
    await RevisionsSweep(each_core).run_once()
    left = await each_core.store.list("revisions/")
    assert left == [key for key in before if named.id in key]
    assert len(left) == 4
    assert await promote(each_core, base, 2) == orphan
    assert await each_core.store.list("revisions/") == before


async def test_a_promotion_under_way_is_left_alone(core: Core, clock: MovableClock) -> None:
    base = await publish_base_model(core)
    await promote(core, base, 1)
    eager = RevisionsSweep(core, grace_seconds=0)
    clock.advance(10)
    before = await core.store.list("revisions/")
    await eager.run_once()
    assert await core.store.list("revisions/") == before
    clock.advance(claims.PROMOTION_SECONDS)
    await eager.run_once()
    assert await core.store.list("revisions/") == []


async def test_a_slow_sweep_gives_up_before_its_claim_does(
    core: Core, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await publish_base_model(core)
    await promote(core, base, 1)
    clock.advance(claims.PROMOTION_SECONDS + 10)
    delete = core.store.delete

    async def delete_slowly(key: str) -> None:
        await delete(key)
        clock.advance(claims.SWEEP_SECONDS / 4)

    monkeypatch.setattr(core.store, "delete", delete_slowly)
    await RevisionsSweep(core, grace_seconds=0).run_once()
    left = await core.store.list("revisions/")
    assert len(left) == 1
    clock.advance(claims.SWEEP_SECONDS)
    await RevisionsSweep(core, grace_seconds=0).run_once()
    assert await core.store.list("revisions/") == []


async def test_what_is_no_revision_is_not_ours(core: Core, clock: MovableClock) -> None:
    await core.store.put_bytes("revisions/readme/x", b"x")
    clock.advance(10)
    await RevisionsSweep(core, grace_seconds=0).run_once()
    assert await core.store.list("revisions/") == ["revisions/readme/x"]
