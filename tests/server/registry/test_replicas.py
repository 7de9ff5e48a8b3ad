"""What gateways say of their engines: the furthest replica counts, silence is an end, gateways hear of each other."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from tests.support.clock import MovableClock
from tunesmith_server.core import Core
from tunesmith_server.db.tables import GatewayRow
from tunesmith_server.registry.replicas import Peer, Presence, Replica, Replicas, ReplicaState, Serving

REVISION = "a" * 64


@pytest.fixture
def replicas(each_core: Core) -> Replicas:
    return Replicas(each_core.database, each_core.clock)


def replica(gateway: str, state: ReplicaState, reason: str | None = None, revision: str = REVISION) -> Replica:
    return Replica(revision, gateway, "base-1", state, reason, since=5, in_flight=0)


def presence(name: str, in_flight: int = 0) -> Presence:
    return Presence(name, f"http://{name}:8002", in_flight, has_room=True, on_demand=["c" * 64])


async def written_at(core: Core) -> dict[str, float]:
    async with core.database.read() as session:
        return {row.id: row.heard_at for row in await session.scalars(select(GatewayRow))}


async def test_the_furthest_replica_says_how_far_a_model_is(replicas: Replicas) -> None:
    assert await replicas.of(REVISION) == Serving("not_loaded", None, ())
    failed = replica("g1", ReplicaState.FAILED, "the proof failed")
    await replicas.take("g1", [failed])
    assert await replicas.of(REVISION) == Serving("failed", "the proof failed", (failed,))
    ready = replica("g2", ReplicaState.READY)
    await replicas.take("g2", [ready])
    assert await replicas.of(REVISION) == Serving("ready", None, (ready, failed))
    assert (await replicas.of("b" * 64)).replicas == ()


async def test_a_report_replaces_the_last_one_and_silence_ends_it(
    replicas: Replicas, each_core: Core, clock: MovableClock
) -> None:
    await replicas.take("g1", [replica("g1", ReplicaState.LOADING)])
    await replicas.take("g1", [replica("g1", ReplicaState.READY)])
    assert [one.state for one in (await replicas.of(REVISION)).replicas] == ["ready"]
    clock.advance(30)
    assert (await replicas.of(REVISION)).state == "not_loaded"
    await replicas.take("g2", [])
    assert (await written_at(each_core)).keys() == {"g2"}


async def test_gateways_that_can_be_reached_hear_of_each_other_and_of_no_others(replicas: Replicas) -> None:
    held = [
        replica("g1", ReplicaState.READY),
        replica("g1", ReplicaState.PROBING, revision="d" * 64),
        replica("g1", ReplicaState.FAILED, revision="e" * 64),
    ]
    assert await replicas.take("g1", held, presence("one")) == []
    assert await replicas.take("alone", []) == []
    assert await replicas.take("g2", [], presence("two")) == [Peer(presence("one"), (REVISION,), ("d" * 64,))]
    assert await replicas.take("g1", held, presence("one")) == [Peer(presence("two"), (), ())]


async def test_a_gateway_that_was_started_anew_takes_the_place_of_the_one_at_its_address(replicas: Replicas) -> None:
    await replicas.take("g1", [replica("g1", ReplicaState.READY)], presence("one"))
    assert await replicas.take("g2", [], presence("one")) == []
    assert (await replicas.of(REVISION)).state == "not_loaded"


async def test_what_has_hardly_changed_is_not_written_each_time(
    replicas: Replicas, each_core: Core, clock: MovableClock
) -> None:
    began = clock()
    await replicas.take("g1", [], presence("one", 100))
    clock.advance(1)
    await replicas.take("g1", [], presence("one", 120))
    assert await written_at(each_core) == {"g1": began}
    await replicas.take("g1", [], presence("one", 130))
    assert await written_at(each_core) == {"g1": began + 1}
    clock.advance(1)
    await replicas.take("g1", [replica("g1", ReplicaState.LOADING)], presence("one", 130))
    assert await written_at(each_core) == {"g1": began + 2}
    clock.advance(10)
    await replicas.take("g1", [replica("g1", ReplicaState.LOADING)], presence("one", 130))
    assert await written_at(each_core) == {"g1": began + 12}
