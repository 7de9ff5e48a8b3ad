"""Promotion against sweep, in every order of their steps: what was committed has its bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import combinations

import pytest

from tests.support.artifacts import BASE_ID, adapter_files, publish_base_model, upload
from tests.support.clock import MovableClock
from tunesmith_server.core import Core
from tunesmith_server.errors import UnavailableError
from tunesmith_server.registry import claims, promotion, repository
from tunesmith_server.registry.manifest import MANIFEST_NAME, ArtifactKind
from tunesmith_server.registry.promotion import Artifact
from tunesmith_server.registry.sweep import FOLDER

ORDERS = [
    tuple("promote" if place in chosen else "sweep" for place in range(6)) for chosen in combinations(range(6), 3)
]


class Promotion:
    """A checkpoint's way to its row, one step at a time."""

    def __init__(self, core: Core, artifact: Artifact) -> None:
        self.core, self.artifact = core, artifact
        self.committed = False
        self.steps: list[Callable[[], Awaitable[None]]] = [self.begin, self.copy, self.commit]

    async def begin(self) -> None:
        """Claims the revision."""
        async with self.core.database.write() as session:
            await claims.begin_promotion(session, promotion.revision_of(self.artifact).id, self.core.clock())

    async def copy(self) -> None:
        """Copies what is not there."""
        await promotion.promote(self.core.store, self.artifact, 64)

    async def commit(self) -> None:
        """Writes the row."""
        async with self.core.database.write() as session:
            await repository.record_revision(session, promotion.revision_of(self.artifact), 0)
        self.committed = True


class Removal:
    """The sweep of one revision, one step at a time."""

    def __init__(self, core: Core, revision_id: str) -> None:
        self.core, self.revision_id = core, revision_id
        self.claimed = False
        self.steps: list[Callable[[], Awaitable[None]]] = [self.begin, self.delete, self.end]

    async def begin(self) -> None:
        """Claims the revision."""
        async with self.core.database.write() as session:
            self.claimed = await claims.begin_sweep(session, self.revision_id, self.core.clock())

    async def delete(self) -> None:
        """Removes the bytes, the seal first."""
        if self.claimed:
            folder = f"{FOLDER}/{self.revision_id}"
            for key in [f"{folder}/{MANIFEST_NAME}", *(await self.core.store.list(f"{folder}/"))]:
                await self.core.store.delete(key)

    async def end(self) -> None:
        """Lets the next promotion in."""
        if self.claimed:
            async with self.core.database.write() as session:
                await claims.end_sweep(session, self.revision_id)


@pytest.fixture
async def artifact(core: Core) -> Artifact:
    """An uploaded adapter whose revision lies there from an earlier try that never committed."""
    base = await publish_base_model(core)
    files = await upload(core, "runs/ftjob-1/e1/step-2", adapter_files())
    made = Artifact(ArtifactKind.ADAPTER, "runs/ftjob-1/e1/step-2", tuple(files), BASE_ID, base)
    await promotion.promote(core.store, made, 64)
    return made


async def is_whole(core: Core, artifact: Artifact) -> bool:
    folder = f"{FOLDER}/{promotion.revision_of(artifact).id}"
    names = [MANIFEST_NAME, *(file.path for file in artifact.files)]
    return None not in [await core.store.size(f"{folder}/{name}") for name in names]


@pytest.mark.parametrize("expiring", [False, True], ids=["in time", "claims run out"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(step[0] for step in order))
async def test_what_was_committed_has_its_bytes(
    core: Core, artifact: Artifact, clock: MovableClock, order: tuple[str, ...], expiring: bool
) -> None:
    promoting = Promotion(core, artifact)
    steps = {"promote": promoting.steps, "sweep": Removal(core, promotion.revision_of(artifact).id).steps}
    refused = False
    for side in order:
        if side == "promote" and refused:
            continue
        try:
            await steps[side].pop(0)()
        except UnavailableError:
            refused = True
        if expiring and not (side == "sweep" and steps["sweep"]):
            # Promotions may take any time; a sweep looks at the clock and stops in time.
            clock.advance(claims.PROMOTION_SECONDS)
    assert promoting.committed != refused
    if promoting.committed:
        assert await is_whole(core, artifact), "a row without bytes"
    again = Promotion(core, artifact)
    for step in again.steps:
        await step()
    assert await is_whole(core, artifact)


async def test_a_sweep_in_the_way_is_waited_for(core: Core, artifact: Artifact, clock: MovableClock) -> None:
    revision_id = promotion.revision_of(artifact).id
    await Removal(core, revision_id).begin()
    with pytest.raises(UnavailableError) as caught:
        await Promotion(core, artifact).begin()
    assert (caught.value.code, caught.value.retry_after) == ("revision_in_removal", 2)
    clock.advance(claims.SWEEP_SECONDS)
    await Promotion(core, artifact).begin()


async def test_both_databases_keep_promotion_and_sweep_apart(each_core: Core) -> None:
    async with each_core.database.write() as session:
        await claims.begin_promotion(session, "r", each_core.clock())
        await claims.begin_promotion(session, "r", each_core.clock())
        assert not await claims.begin_sweep(session, "r", each_core.clock())
        await claims.end_promotion(session, "r")
        await claims.end_promotion(session, "r")
        assert await claims.begin_sweep(session, "r", each_core.clock())
        await claims.end_sweep(session, "r")
        with pytest.raises(UnavailableError):
            await claims.end_promotion(session, "r")
        await claims.forget_old(session, each_core.clock() + 2 * claims.PROMOTION_SECONDS)
        await claims.end_promotion(session, "r")
