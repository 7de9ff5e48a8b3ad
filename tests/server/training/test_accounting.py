"""A run at its limit is paused; what it waits in a cluster's queue is no time of its own."""

from __future__ import annotations

import pytest

from tests.server.scheduling.test_reconciler import change, make_reconciler, reconcile
from tests.support.clock import MovableClock
from tests.support.executor import exited
from tests.support.factories import Platform
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.executors.base import Observation, RunState
from tunesmith_server.scheduling.reconciler import Reconciler


@pytest.fixture
def reconciler(platform: Platform) -> Reconciler:
    """A reconciler over the scripted executor."""
    return make_reconciler(platform)


async def waiting(platform: Platform) -> AttemptIdentity:
    """A run of at most 100 seconds that is in the cluster's queue."""
    identity = await platform.start_training()
    await change(platform, identity.job_id, max_run_seconds=100)
    platform.executor.observations[identity.attempt_id] = Observation(RunState.PENDING)
    return identity


async def test_a_run_at_its_limit_is_paused_and_gets_as_much_again_when_it_is_resumed(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    await reconcile(reconciler)
    await change(platform, identity.job_id, max_run_seconds=100)
    for seconds, state in ((99, "running"), (1, "pausing")):
        clock.advance(seconds)
        answer = await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1))
        await reconcile(reconciler)
        assert (await platform.row(identity.job_id)).state == state
    assert answer.command == pb.COMMAND_UNSPECIFIED
    answer = await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=2))
    assert answer.command == pb.COMMAND_PAUSE
    assert "max_run_seconds of 100" in (await platform.messages(identity.job_id))[-1]

    clock.advance(5)
    platform.executor.observations[identity.attempt_id] = exited(75)
    await reconcile(reconciler)
    job = await platform.row(identity.job_id)
    assert (job.state, job.lease_token, job.run_seconds) == ("paused", None, 105.0)
    assert (await platform.attempt(identity.attempt_id)).state == "ended"

    await change(platform, identity.job_id, state="queued")
    again = await platform.claim(identity.job_id)
    await reconcile(reconciler)
    clock.advance(94)
    await platform.training.heartbeat(again, pb.HeartbeatRequest(sequence=1))
    await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "running"
    clock.advance(1)
    await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "pausing"


async def test_a_wait_in_the_clusters_queue_uses_up_no_limit(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await waiting(platform)
    for _ in range(3):
        clock.advance(600)
        await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "running"

    platform.executor.observations[identity.attempt_id] = Observation(RunState.RUNNING)
    for seconds, state in ((0, "running"), (99, "running"), (1, "pausing")):
        clock.advance(seconds)
        await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1))
        await reconcile(reconciler)
        assert (await platform.row(identity.job_id)).state == state


async def test_a_run_that_went_without_a_start_costs_nothing(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await waiting(platform)
    clock.advance(600)
    await reconcile(reconciler)
    platform.executor.observations[identity.attempt_id] = exited(70)
    await reconcile(reconciler)
    job = await platform.row(identity.job_id)
    assert (job.state, job.run_seconds, job.device_seconds) == ("queued", 0.0, 0.0)


async def test_a_run_that_waits_in_the_queue_again_is_not_paused_there(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    await change(platform, identity.job_id, max_run_seconds=100)
    await reconcile(reconciler)
    platform.executor.observations[identity.attempt_id] = Observation(RunState.PENDING)
    clock.advance(100)
    await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "running", "nothing runs that could be told"
