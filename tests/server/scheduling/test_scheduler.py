"""Which jobs are started, and what is written before anything runs."""

from __future__ import annotations

import asyncio

from tests.support.artifacts import BASE_ID
from tests.support.clock import MovableClock
from tests.support.executor import ScriptedExecutor
from tests.support.factories import PRINCIPAL, Platform, preflight_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.db.tables import BaseModelRow, FineTuneRow
from tunesmith_server.scheduling.scheduler import Scheduler


async def test_a_claim_is_written_before_the_launch(platform: Platform) -> None:
    identity = await platform.start_preflight()

    job, attempt = await platform.row(identity.job_id), await platform.attempt(identity.attempt_id)
    assert (job.state, job.lease_token, job.epoch) == ("validating_files", identity.attempt_id, 1)
    assert job.lease_expires_at == platform.core.clock() + platform.core.settings.lease_ttl_seconds
    assert (attempt.kind, attempt.state, attempt.epoch) == ("preflight", "live", 1)
    launch = platform.executor.launches[identity.attempt_id]
    assert launch.control_plane == platform.core.settings.resolved_grpc_address
    assert platform.core.signer.read_attempt_token(launch.token) == identity


async def test_training_waits_for_room_and_a_preflight_does_not(platform: Platform) -> None:
    first = await platform.start_training()
    second = await platform.start_preflight()
    await platform.training.complete_preflight(second, preflight_report())
    await platform.end_run(second)
    third = await platform.start_preflight()

    assert (await platform.row(first.job_id)).state == "running"
    assert (await platform.row(second.job_id)).state == "queued"
    assert (await platform.row(third.job_id)).lease_token == third.attempt_id

    await platform.training.fail_run(first, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_USER))
    await platform.scheduler.run_once()
    assert (await platform.row(second.job_id)).state == "queued", "the ended job's run still holds its machine"
    await platform.end_run(first)
    await platform.claim(second.job_id)
    assert (await platform.row(second.job_id)).state == "running"


async def test_a_job_that_backs_off_waits_and_its_old_run_must_be_over(platform: Platform, clock: MovableClock) -> None:
    identity = await platform.start_training()
    await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_INFRASTRUCTURE))
    await platform.end_run(identity)

    await platform.scheduler.run_once()
    assert (await platform.row(identity.job_id)).state == "queued"
    clock.advance(5)
    again = await platform.claim(identity.job_id)
    assert (again.epoch, again.attempt_id != identity.attempt_id) == (identity.epoch + 1, True)
    assert (await platform.messages(identity.job_id))[-1] == "Fine-tuning job started again"


async def test_jobs_wait_for_their_base_model_and_fail_with_it(platform: Platform) -> None:
    await set_base(platform, "importing")
    job_id = await platform.create()
    await platform.scheduler.run_once()
    assert platform.executor.launches == {}
    assert (await platform.messages(job_id))[1:] == [f"Waiting for the base model {BASE_ID} to be imported"]

    await set_base(platform, "failed", "no such folder: /srv/models")
    await platform.scheduler.run_once()

    job = await platform.fine_tunes.get(PRINCIPAL, job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("base_model_import_failed", "model")
    assert "/srv/models" not in job.error.message, "paths of the machine are the operator's business"


async def test_a_job_on_an_architecture_that_is_not_supported_is_told_so(platform: Platform) -> None:
    job_id = await platform.create()
    await set_base(platform, "failed", "/srv/models: It is a mixture.", "It is a mixture of experts.")
    await platform.scheduler.run_once()

    error = (await platform.fine_tunes.get(PRINCIPAL, job_id)).error
    assert error is not None
    assert (error.code, error.param) == ("unsupported_architecture", "model")
    assert error.message == "It is a mixture of experts. Choose another one."


async def test_two_schedulers_start_a_job_once(each_platform: Platform) -> None:
    job_id = await each_platform.create()
    others = [ScriptedExecutor() for _ in range(3)]
    schedulers = [Scheduler(each_platform.core, executor, lambda: True) for executor in others]

    await asyncio.gather(*(scheduler.run_once() for scheduler in schedulers))

    assert sum(len(executor.launches) for executor in others) == 1
    assert (await each_platform.row(job_id)).epoch == 1


async def test_who_does_not_lead_starts_nothing(platform: Platform) -> None:
    job_id = await platform.create()
    await Scheduler(platform.core, platform.executor, lambda: False).run_once()
    assert (await platform.row(job_id)).lease_token is None


async def test_a_launch_that_fails_keeps_the_claim(platform: Platform) -> None:
    platform.executor.refuses = True
    job_id = await platform.create()
    await platform.scheduler.run_once()
    assert (await platform.row(job_id)).lease_token is not None


async def set_base(platform: Platform, state: str, error: str | None = None, unsupported: str | None = None) -> None:
    """Says what became of the base model's import."""
    async with platform.core.database.write() as session:
        row = await session.get(BaseModelRow, BASE_ID)
        assert row is not None
        row.state, row.error, row.unsupported = state, error, unsupported


async def test_devices_are_written_with_the_claim_and_given_to_the_run(each_platform: Platform) -> None:
    each_platform.executor.devices = ("gpu-a", "gpu-b", "gpu-c")
    one, two, three = [await queue(each_platform, devices=devices) for devices in (1, 2, 1)]
    await each_platform.scheduler.run_once()

    identities = [each_platform.executor.identity_of(each_platform.core.signer, job_id) for job_id in (one, two)]
    held = [(await each_platform.attempt(identity.attempt_id)).device_ids for identity in identities if identity]
    launched = [each_platform.executor.launches[identity.attempt_id].devices for identity in identities if identity]
    assert held == [["gpu-a"], ["gpu-b", "gpu-c"]]
    assert launched == [("gpu-a",), ("gpu-b", "gpu-c")]
    assert (await each_platform.row(three)).state == "queued"


async def test_a_job_for_more_devices_than_there_are_fails_and_says_so(platform: Platform) -> None:
    job_id = await queue(platform, devices=2)
    await platform.scheduler.run_once()
    job = await platform.fine_tunes.get(PRINCIPAL, job_id)
    assert job.error is not None
    assert (job.status, job.error.code, job.error.param) == ("failed", "not_enough_devices", "devices")


async def test_a_machine_that_cannot_tell_its_devices_fails_nobody(platform: Platform) -> None:
    job_id = await queue(platform)
    platform.executor.knows_devices = False
    await platform.scheduler.run_once()
    assert (await platform.row(job_id)).state == "queued"


async def test_a_former_leader_claims_nothing(platform: Platform) -> None:
    job_id = await queue(platform)

    async def led_until_now(_session: object) -> bool:
        return False

    await Scheduler(platform.core, platform.executor, lambda: True, led_until_now).run_once()
    assert (await platform.row(job_id)).state == "queued"


async def test_a_job_of_higher_priority_has_a_run_save_and_make_room(platform: Platform, clock: MovableClock) -> None:
    low = await platform.start_training()
    urgent = await queue(platform, priority=1)
    await platform.scheduler.run_once()
    assert not (await platform.row(low.job_id)).preempt_requested, "it has not had its time yet"

    clock.advance(300)
    for _ in range(2):
        await platform.scheduler.run_once()
    asked = [message for message in await platform.messages(low.job_id) if "higher priority" in message]
    assert ((await platform.row(low.job_id)).preempt_requested, len(asked)) == (True, 1)
    answer = await platform.training.heartbeat(low, pb.HeartbeatRequest(sequence=1))
    assert answer.command == pb.COMMAND_PAUSE
    assert (await platform.row(urgent)).state == "queued", "the devices are still held"


async def queue(platform: Platform, **values: object) -> str:
    """A job that waits for devices, put there without a pass of the scheduler."""
    job_id = await platform.create()
    async with platform.core.database.write() as session:
        job = await session.get(FineTuneRow, job_id)
        for name, value in {"state": "queued", **values}.items():
            setattr(job, name, value)
    return job_id
