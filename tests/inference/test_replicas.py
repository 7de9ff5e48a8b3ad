"""What engines hold reaches the control plane: at each change, and again when it may have been forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.inference.gateway import gateway_on_simulator, golden, until
from tests.support.clock import MovableClock
from tests.support.serving_control_plane import ServingControlPlane
from tunesmith_inference.replicas import Aged, Replica, ReplicaReports, ReplicaState, ReportLost
from tunesmith_proto.registry.v1 import serving_pb2

LOADING = Replica("a" * 64, "base-1", ReplicaState.LOADING)
READY = Replica("a" * 64, "base-1", ReplicaState.READY)


async def test_a_change_is_told_once_with_its_time_and_everything_again_after_a_while() -> None:
    clock, sent = MovableClock(100.0), []
    held = [LOADING]

    async def send(replicas: Sequence[Aged]) -> None:
        sent.append(list(replicas))

    reports = ReplicaReports(lambda: held, send, clock)
    for _ in range(3):
        await reports.look()
    clock.advance(5)
    held[:] = [READY]
    await reports.look()
    clock.advance(15)
    await reports.look()
    assert sent == [[Aged(LOADING, 100)], [Aged(READY, 105)], [Aged(READY, 105)]]


async def test_a_new_reason_is_told_though_the_state_is_the_same() -> None:
    clock, sent = MovableClock(100.0), []
    held = [LOADING]

    async def send(replicas: Sequence[Aged]) -> None:
        sent.append(list(replicas))

    reports = ReplicaReports(lambda: held, send, clock)
    await reports.look()
    clock.advance(1)
    held[:] = [late := replace(LOADING, reason="no files yet")]
    await reports.look()
    assert sent == [[Aged(LOADING, 100)], [Aged(late, 100)]]


async def test_a_lost_report_is_told_again() -> None:
    sent: list[int] = []

    async def send(replicas: Sequence[Aged]) -> None:
        sent.append(len(replicas))
        if len(sent) == 1:
            raise ReportLost

    reports = ReplicaReports(lambda: [READY], send, MovableClock())
    with pytest.raises(ReportLost):
        await reports.look()
    await reports.look()
    await reports.look()
    assert sent == [1, 1]


async def test_the_reason_of_a_failed_proof_reaches_the_control_plane(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path) as gateway:
        good = gateway.add_adapter("good", "good")
        forged = gateway.add_adapter("forged", "forged", files={"golden.json": golden("another")})
        states = await until(lambda: _told(gateway.control_plane.replicas, {good, forged}))
        assert states[good].state == serving_pb2.REPLICA_STATE_READY
        assert states[forged].state == serving_pb2.REPLICA_STATE_FAILED
        assert "log-probability" in states[forged].reason


async def test_a_gateway_that_ends_takes_back_what_it_said(tmp_path: Path) -> None:
    async with gateway_on_simulator(tmp_path, gateway_address="http://127.0.0.1:1") as gateway:
        revision = gateway.add_adapter("good", "good")
        await until(lambda: _told(gateway.control_plane.replicas, {revision}))
        assert _known(gateway.control_plane) == (True, True)
    assert _known(gateway.control_plane) == (False, False)


async def test_a_gateway_ends_though_nobody_hears_its_last_report() -> None:
    async def send(replicas: Sequence[Aged]) -> None:
        raise ReportLost

    await ReplicaReports(lambda: [READY], send, MovableClock()).close()


def _known(control_plane: ServingControlPlane) -> tuple[bool, bool]:
    return bool(control_plane.replicas), control_plane.presence is not None


def _told(replicas: list[serving_pb2.Replica], revisions: set[str]) -> dict[str, serving_pb2.Replica] | None:
    """The reports of these revisions, once each has come to an end."""
    ends = (serving_pb2.REPLICA_STATE_READY, serving_pb2.REPLICA_STATE_FAILED)
    found = {one.revision: one for one in replicas if one.revision in revisions and one.state in ends}
    return found if len(found) == len(revisions) else None
