"""What the job store says after the executor was heard: adoption, loss, exit codes, cancellation, cleaning up."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import OperationalError

from tests.support.clock import MovableClock
from tests.support.executor import GONE, UNREACHABLE, exited
from tests.support.factories import PRINCIPAL, Platform
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import FineTuneRow
from tunesmith_server.errors import FencedError
from tunesmith_server.executors.base import Observation
from tunesmith_server.scheduling.reconciler import Reconciler


@pytest.fixture
def reconciler(platform: Platform) -> Reconciler:
    """A reconciler over the scripted executor."""
    return make_reconciler(platform)


def make_reconciler(platform: Platform) -> Reconciler:
    """One more control plane's reconciler."""
    return Reconciler(platform.core, platform.executor, lambda: True, lambda: None)


async def test_a_healthy_run_is_left_alone(platform: Platform, reconciler: Reconciler) -> None:
    identity = await platform.start_training()
    before = await platform.row(identity.job_id)
    await reconcile(reconciler)
    after = await platform.row(identity.job_id)
    assert (after.lease_token, after.event_count) == (before.lease_token, before.event_count)
    assert platform.executor.stopped == []


async def test_a_claim_that_was_never_launched_is_launched_with_the_same_token(
    platform: Platform, reconciler: Reconciler
) -> None:
    identity = await platform.start_preflight()
    launched = platform.executor.launches.pop(identity.attempt_id)
    await reconcile(reconciler)
    assert platform.executor.launches == {identity.attempt_id: launched}


async def test_a_lost_run_is_tried_again_after_lease_and_back_off(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1, phase="training"))
    platform.executor.observations[identity.attempt_id] = exited(137)

    await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "running", "one witness is not enough"
    clock.advance(60)
    await reconcile(reconciler)

    job, attempt = await platform.row(identity.job_id), await platform.attempt(identity.attempt_id)
    assert (job.state, job.lease_token, job.retries) == ("queued", None, {"infrastructure": 1})
    assert job.not_before == clock.now + 5
    assert (attempt.state, attempt.exit_code, attempt.end_cause) == ("ended", 137, "exited")
    assert platform.executor.forgotten == [identity.attempt_id]
    with pytest.raises(FencedError):
        await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=2))


async def test_a_job_fails_when_it_was_lost_six_times(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    for _ in range(6):
        platform.executor.observations[identity.attempt_id] = GONE
        await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1))
        clock.advance(200)
        await reconcile(reconciler)
        if (await platform.row(identity.job_id)).state == "failed":
            break
        clock.advance(80)
        identity = await platform.claim(identity.job_id)
    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "retries_exhausted"
    assert identity.epoch == 7


@pytest.mark.parametrize(
    ("code", "state", "error"),
    [
        (0, "queued", None),
        (64, "failed", "invalid_spec"),
        (65, "failed", "invalid_training_data"),
        (66, "failed", "unsupported_model"),
        (70, "queued", None),
        (71, "queued", None),
        (75, "queued", None),
    ],
)
async def test_a_run_that_chose_its_exit_code_is_settled_at_once(
    platform: Platform, reconciler: Reconciler, code: int, state: str, error: str | None
) -> None:
    identity = await platform.start_training()
    platform.executor.observations[identity.attempt_id] = exited(code)
    await reconcile(reconciler)
    job = await platform.row(identity.job_id)
    assert (job.state, job.error_code, job.lease_token) == (state, error, None)
    log = platform.core.settings.home / "logs" / f"{identity.attempt_id}.log"
    assert log.read_text() == f"log of {identity.attempt_id}\n"


async def test_a_preflight_that_is_lost_stays_in_its_state(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_preflight()
    platform.executor.observations[identity.attempt_id] = exited(1)
    clock.advance(60)
    await reconcile(reconciler)
    job = await platform.row(identity.job_id)
    assert (job.state, job.lease_token) == ("validating_files", None)


async def test_an_executor_that_cannot_tell_is_waited_for(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    platform.executor.observations[identity.attempt_id] = UNREACHABLE
    await reconcile(reconciler)
    clock.advance(300)
    await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "running"
    del platform.executor.observations[identity.attempt_id]
    await reconcile(reconciler)
    assert (await platform.attempt(identity.attempt_id)).unreachable_since is None

    platform.executor.observations[identity.attempt_id] = UNREACHABLE
    await reconcile(reconciler)
    clock.advance(301)
    await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "queued"


async def test_a_run_that_is_silent_for_too_long_is_stopped_before_another_starts(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    clock.advance(61)
    await reconcile(reconciler)
    await reconcile(reconciler)
    silences = [message for message in await platform.messages(identity.job_id) if "not been heard" in message]
    assert len(silences) == 1
    assert platform.executor.stopped == []

    clock.advance(300)
    await reconcile(reconciler)
    assert platform.executor.stopped == [identity.attempt_id]
    await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "queued"


async def test_a_new_control_plane_gives_runs_time_to_call(platform: Platform, clock: MovableClock) -> None:
    identity = await platform.start_training()
    clock.advance(3600)
    reconciler = make_reconciler(platform)
    await reconcile(reconciler)
    clock.advance(59)
    await reconcile(reconciler)
    assert platform.executor.stopped == []
    answer = await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1))
    assert answer.command == pb.COMMAND_UNSPECIFIED


async def test_a_cancelled_run_that_does_not_stop_is_stopped(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    await platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)
    await reconcile(reconciler)
    clock.advance(30)
    await reconcile(reconciler)
    assert platform.executor.stopped == []
    clock.advance(1)
    await reconcile(reconciler)
    assert platform.executor.stopped == [identity.attempt_id]
    await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "cancelled"


@pytest.mark.parametrize("observation", [GONE, exited(75), exited(0), exited(137)])
async def test_a_cancelled_run_that_ended_makes_the_job_cancelled(
    platform: Platform, reconciler: Reconciler, observation: object
) -> None:
    identity = await platform.start_training()
    await platform.fine_tunes.cancel(PRINCIPAL, identity.job_id)
    platform.executor.observations[identity.attempt_id] = observation  # type: ignore[assignment]  # one of ours
    await reconcile(reconciler)
    job = await platform.row(identity.job_id)
    assert (job.state, job.lease_token) == ("cancelled", None)


async def test_runs_without_a_live_attempt_are_removed(platform: Platform, reconciler: Reconciler) -> None:
    identity = await platform.start_training()
    orphan = platform.executor.launches[identity.attempt_id]
    platform.executor.launches["attempt-orphan"] = orphan
    await reconcile(reconciler)
    assert platform.executor.forgotten == ["attempt-orphan"]
    assert platform.executor.stopped == ["attempt-orphan"]


async def test_the_runs_own_word_and_its_exit_code_count_once(platform: Platform, reconciler: Reconciler) -> None:
    identity = await platform.start_training()
    failure = pb.Failure(code="bad_row", message="Row 3 is empty.", param="training_file", row=3)
    await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_USER, failures=[failure]))
    platform.executor.observations[identity.attempt_id] = exited(65)
    before = await platform.row(identity.job_id)
    await reconcile(reconciler)
    after = await platform.row(identity.job_id)
    assert (after.error_code, after.event_count) == ("bad_row", before.event_count)
    assert (await platform.attempt(identity.attempt_id)).state == "ended"


async def test_who_does_not_lead_changes_nothing(platform: Platform) -> None:
    identity: AttemptIdentity = await platform.start_training()
    platform.executor.observations[identity.attempt_id] = exited(65)
    platform.executor.launches["attempt-orphan"] = platform.executor.launches[identity.attempt_id]
    await reconcile(Reconciler(platform.core, platform.executor, lambda: False, lambda: None))
    assert (await platform.row(identity.job_id)).state == "running"
    assert platform.executor.forgotten == []


async def test_a_run_that_does_not_make_room_in_time_is_stopped_and_that_is_no_loss(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    await change(platform, identity.job_id, preempt_requested=True)
    for seconds in (0, 600, 1):
        assert platform.executor.stopped == []
        clock.advance(seconds)
        await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1))
        await reconcile(reconciler)
    assert platform.executor.stopped == [identity.attempt_id]
    await reconcile(reconciler)
    job = await platform.row(identity.job_id)
    assert (job.state, job.retries, job.not_before) == ("queued", {"preemption": 1}, clock.now)


async def test_a_run_that_does_not_pause_in_time_is_stopped_and_its_job_pauses(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    await change(platform, identity.job_id, state="pausing")
    for seconds in (0, 600, 1):
        assert platform.executor.stopped == []
        clock.advance(seconds)
        await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1))
        await reconcile(reconciler)
    assert platform.executor.stopped == [identity.attempt_id]
    await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "paused"


async def test_no_second_epoch_starts_while_the_silent_run_may_live(
    platform: Platform, reconciler: Reconciler, clock: MovableClock
) -> None:
    identity = await platform.start_training()
    clock.advance(361)
    await reconciler.run_once()
    await platform.scheduler.run_once()
    job = await platform.row(identity.job_id)
    assert (job.state, job.epoch) == ("running", identity.epoch), "told to end, and not yet seen to have ended"
    await reconcile(reconciler)
    await reconcile(reconciler)
    clock.advance(5)
    again = await platform.claim(identity.job_id)
    assert again.epoch == identity.epoch + 1


async def test_a_log_that_cannot_be_kept_keeps_nobody_from_an_end(
    platform: Platform, reconciler: Reconciler, caplog: pytest.LogCaptureFixture
) -> None:
    identity = await platform.start_training()
    platform.executor.observations[identity.attempt_id] = exited(65)
    (platform.core.settings.home / "logs").write_text("no folder")
    await reconcile(reconciler)
    assert (await platform.row(identity.job_id)).state == "failed"
    assert (await platform.attempt(identity.attempt_id)).state == "ended"
    assert f"the log of attempt {identity.attempt_id} cannot be kept" in caplog.text


async def test_an_attempt_that_cannot_be_reconciled_holds_up_no_other(
    platform: Platform, reconciler: Reconciler, caplog: pytest.LogCaptureFixture
) -> None:
    platform.executor.devices = ("slot-0", "slot-1")
    first, second = [await platform.start_training() for _ in range(2)]
    observe = platform.executor.observe

    async def observe_all_but_the_first(attempt_id: str) -> Observation:
        if attempt_id == first.attempt_id:
            raise ValueError("something nobody expected")
        return await observe(attempt_id)

    platform.executor.observe = observe_all_but_the_first  # type: ignore[method-assign]  # an executor with a defect
    platform.executor.observations |= {each.attempt_id: exited(65) for each in (first, second)}
    await reconcile(reconciler)
    assert (await platform.row(first.job_id)).state == "running"
    assert (await platform.row(second.job_id)).state == "failed"
    assert f"attempt {first.attempt_id} cannot be reconciled now" in caplog.text
    platform.executor.observe = observe  # type: ignore[method-assign]  # mended
    await reconcile(reconciler)
    assert (await platform.row(first.job_id)).state == "failed"


async def test_a_pass_ends_where_the_database_is_away(platform: Platform, reconciler: Reconciler) -> None:
    platform.executor.devices = ("slot-0", "slot-1")
    for _ in range(2):
        await platform.start_training()
    asked: list[str] = []

    async def observe(attempt_id: str) -> Observation:
        asked.append(attempt_id)
        raise OperationalError("SELECT 1", None, Exception("no route to the host"))

    platform.executor.observe = observe  # type: ignore[method-assign]  # stands for what a step reads
    with pytest.raises(OperationalError):
        await reconciler.run_once()
    assert len(asked) == 1


async def change(platform: Platform, job_id: str, **values: object) -> None:
    """Writes columns that somebody else decides on."""
    async with platform.core.database.write() as session:
        job = await session.get(FineTuneRow, job_id)
        for name, value in values.items():
            setattr(job, name, value)


async def reconcile(reconciler: Reconciler) -> None:
    """One pass with the slow work that it started."""
    await reconciler.run_once()
    await asyncio.gather(*reconciler._background.values())
