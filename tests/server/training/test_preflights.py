"""What a preflight found stays on the job, whether the job goes on, waits or fails, and its rejects become a file."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.support.factories import PRINCIPAL, Platform, preflight_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import AttemptIdentity
from tunesmith_server.db.tables import FileRow, FineTuneRow
from tunesmith_server.errors import InvalidRequestError
from tunesmith_server.training import preflights

REJECTS = (
    b'{"line": 3, "param": "training_file", "code": "row_cut", "message": "Row 3 \xe2\x80\xa6", "action": "cut"}\n'
)
FINDING = pb.Finding(
    code="row_cut",
    message="Row 3 has 90 tokens\x00.",
    severity=pb.SEVERITY_WARNING,
    param="training_file",
    rows=[3],
    count=1,
)


def full_report(**changes: Any) -> pb.PreflightReport:
    """A report with everything in it but rejects."""
    counts = pb.PreflightCounts(
        rows=10,
        cut_rows=1,
        tokens=200,
        token_histogram=[pb.HistogramBin(least_tokens=16, below_tokens=32, rows=10)],
    )
    memory = pb.MemoryFit(
        needed_bytes=2000,
        available_bytes=3000,
        capacity_bytes=4000,
        fits=True,
        device="cpu",
        terms=[pb.MemoryTerm(name="weights", bytes=2000)],
    )
    resolved = [pb.Resolved(name="n_epochs", value="3", reason="10 rows")]
    values: dict[str, Any] = {"counts": counts, "findings": [FINDING], "memory": memory, "resolved": resolved}
    return pb.PreflightReport(**(values | {"seconds": 12.5} | changes))


async def uploaded(platform: Platform, identity: AttemptIdentity, content: bytes = REJECTS) -> pb.UploadFile:
    """Uploads a rejects file of the attempt and says what REJECTS would be."""
    key = f"runs/{identity.job_id}/e{identity.epoch}/rejects.jsonl"
    await platform.core.store.put_bytes(key, content)
    return pb.UploadFile(path="rejects.jsonl", size=len(REJECTS), sha256=hashlib.sha256(REJECTS).hexdigest())


def completion(report: pb.PreflightReport) -> pb.CompletePreflightRequest:
    """A completed preflight with this report."""
    request = preflight_report()
    request.report.CopyFrom(report)
    return request


async def change(platform: Platform, job_id: str, **values: Any) -> None:
    """Writes columns of a job."""
    async with platform.core.database.write() as session:
        job = await session.get(FineTuneRow, job_id)
        assert job is not None
        for name, value in values.items():
            setattr(job, name, value)


def test_a_report_is_kept_whole_and_clean() -> None:
    kept = preflights.stored(full_report())

    assert kept["counts"]["rows"] == 10
    assert kept["counts"]["refused_rows"] == 0
    assert kept["counts"]["token_histogram"] == [{"least_tokens": 16, "below_tokens": 32, "rows": 10}]
    assert kept["findings"] == [
        {
            "code": "row_cut",
            "message": "Row 3 has 90 tokens.",
            "severity": "warning",
            "param": "training_file",
            "rows": [3],
            "count": 1,
        }
    ]
    assert kept["memory"]["needed_bytes"] == 2000
    assert kept["memory"]["fits"] is True
    assert kept["memory"]["terms"] == [{"name": "weights", "bytes": 2000}]
    assert kept["seconds"] == 12.5
    assert kept["resolved"] == [{"name": "n_epochs", "value": "3", "reason": "10 rows"}]


def test_what_a_report_does_not_know_is_null() -> None:
    kept = preflights.stored(pb.PreflightReport(seconds=float("inf")))
    assert (kept["memory"], kept["seconds"], kept["findings"], kept["resolved"]) == (None, None, [], [])


async def test_a_completed_preflight_leaves_its_report_and_its_rejects(each_platform: Platform) -> None:
    identity = await each_platform.start_preflight(training={"long_rows": "cut"})
    assert (await each_platform.training.get_spec(identity)).long_rows == pb.LONG_ROWS_CUT
    report = full_report(rejects=await uploaded(each_platform, identity))
    for _ in range(2):
        await each_platform.training.complete_preflight(identity, completion(report))

    job = await each_platform.row(identity.job_id)
    assert (job.state, job.result_file_ids) == ("queued", [job.rejects_file_id])
    assert job.report == preflights.stored(report)
    async with each_platform.core.database.read() as session:
        file = await session.get(FileRow, job.rejects_file_id)
    assert file is not None
    assert (file.project_id, file.purpose, file.filename) == ("default", "fine-tune-results", "rejects.jsonl")
    assert b"".join([chunk async for chunk in each_platform.core.store.read(file.storage_key)]) == REJECTS
    assert (await each_platform.fine_tunes.get(PRINCIPAL, job.id)).training.long_rows == "cut"


async def test_a_failed_preflight_leaves_them_too(each_platform: Platform) -> None:
    identity = await each_platform.start_preflight()
    report = full_report(rejects=await uploaded(each_platform, identity))
    failure = pb.Failure(code="row_too_long", message="Row 3 is too long.", param="training_file", row=3)
    request = pb.FailRunRequest(cause=pb.FAILURE_CAUSE_USER, failures=[failure], report=report)
    for _ in range(2):
        await each_platform.training.fail_run(identity, request)

    job = await each_platform.row(identity.job_id)
    assert (job.state, job.error_code) == ("failed", "row_too_long")
    assert job.report == preflights.stored(report)
    assert job.rejects_file_id is not None
    assert job.result_file_ids == [job.rejects_file_id]


async def test_rejects_must_be_what_they_are_said_to_be(platform: Platform) -> None:
    identity = await platform.start_preflight()
    report = full_report(rejects=await uploaded(platform, identity, b"forged" + REJECTS[6:]))
    with pytest.raises(InvalidRequestError) as caught:
        await platform.training.complete_preflight(identity, completion(report))
    assert caught.value.code == "invalid_upload"
    assert (await platform.row(identity.job_id)).state == "validating_files"


async def test_a_job_without_auto_start_waits_and_says_how_to_start_it(platform: Platform) -> None:
    identity = await platform.start_preflight()
    await change(platform, identity.job_id, auto_start=False)
    await platform.training.complete_preflight(identity, completion(full_report()))

    assert (await platform.row(identity.job_id)).state == "paused"
    last = (await platform.messages(identity.job_id))[-1]
    assert f"/v1/fine_tuning/jobs/{identity.job_id}/resume" in last


@pytest.mark.parametrize(
    ("wish", "told", "chosen", "devices"),
    [("auto", 0, 2, 2), ("auto", 0, 0, 1), (1, 1, 1, 1), (4, 4, 4, 4), (4, 4, 2, 4)],
    ids=["chosen", "not said", "one", "four", "not asked"],
)
async def test_a_number_of_devices_that_was_left_open_is_the_preflights(
    platform: Platform, wish: int | str, told: int, chosen: int, devices: int
) -> None:
    platform.executor.devices = tuple(f"gpu-{number}" for number in range(4))
    identity = await platform.start_preflight(scheduling={"devices": wish})
    assert (await platform.fine_tunes.get(PRINCIPAL, identity.job_id)).scheduling.devices == wish
    assert (await platform.training.get_spec(identity)).devices == told

    request = completion(full_report())
    request.devices = chosen
    await platform.training.complete_preflight(identity, request)
    await platform.end_run(identity)

    assert (await platform.fine_tunes.get(PRINCIPAL, identity.job_id)).scheduling.devices == devices
    again = await platform.claim(identity.job_id)
    assert (await platform.training.get_spec(again)).devices == devices
    assert len(platform.executor.launches[again.attempt_id].devices) == devices


async def test_a_job_that_fits_on_more_devices_than_there_are_fails_and_says_so(platform: Platform) -> None:
    identity = await platform.start_preflight()
    request = completion(full_report())
    request.devices = 2
    await platform.training.complete_preflight(identity, request)
    await platform.end_run(identity)
    await platform.scheduler.run_once()
    job = await platform.fine_tunes.get(PRINCIPAL, identity.job_id)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "not_enough_devices")
    assert job.error.message.startswith("The job needs 2 devices, but this installation has 1.")


async def test_the_rate_that_was_resolved_is_the_jobs(platform: Platform) -> None:
    identity = await platform.start_training()
    spec, job = await platform.training.get_spec(identity), await platform.row(identity.job_id)
    assert job.resolved is not None
    assert spec.learning_rate == job.resolved["learning_rate"] > 0


async def test_an_estimate_ends_paused(platform: Platform) -> None:
    identity = await platform.start_preflight()
    await change(platform, identity.job_id, kind="estimate")
    await platform.training.complete_preflight(identity, completion(full_report()))

    job = await platform.row(identity.job_id)
    assert (job.state, job.lease_token) == ("paused", None)
    assert job.resolved is not None
