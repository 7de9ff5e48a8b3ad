"""What gateways say of their engines: the furthest replica counts, and silence is an end."""

from __future__ import annotations

from tests.support.clock import MovableClock
from tunesmith_server.registry.replicas import Replica, Replicas, ReplicaState, Serving

REVISION = "a" * 64


def replica(gateway: str, state: ReplicaState, reason: str | None = None) -> Replica:
    return Replica(REVISION, gateway, "base-1", state, reason, since=5, in_flight=0)


def test_the_furthest_replica_says_how_far_a_model_is() -> None:
    replicas = Replicas(lambda: 0.0)
    assert replicas.of(REVISION) == Serving("not_loaded", None, ())
    failed = replica("g1", ReplicaState.FAILED, "the proof failed")
    replicas.take("g1", [failed])
    assert replicas.of(REVISION) == Serving("failed", "the proof failed", (failed,))
    ready = replica("g2", ReplicaState.READY)
    replicas.take("g2", [ready])
    assert replicas.of(REVISION) == Serving("ready", None, (ready, failed))
    assert replicas.of("b" * 64).replicas == ()


def test_a_report_replaces_the_last_one_and_silence_ends_it() -> None:
    clock = MovableClock()
    replicas = Replicas(clock)
    replicas.take("g1", [replica("g1", ReplicaState.LOADING)])
    replicas.take("g1", [replica("g1", ReplicaState.READY)])
    assert [one.state for one in replicas.of(REVISION).replicas] == ["ready"]
    clock.advance(61)
    assert replicas.of(REVISION).state == "not_loaded"
