"""Dry runs: what they say, what they leave, and that no job route shows them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.server.fine_tunes.test_policy import tuned
from tests.support.core import open_core
from tests.support.factories import PRINCIPAL, Platform, make_platform, preflight_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.auth import Principal
from tunesmith_server.errors import ConflictError, InvalidRequestError, NotFoundError
from tunesmith_server.files.service import FilesService
from tunesmith_server.fine_tunes.estimate_schemas import EstimateObject
from tunesmith_server.fine_tunes.estimates import EstimatesService
from tunesmith_server.scheduling.outlook import Outlook


def service(platform: Platform) -> EstimatesService:
    """The service over the platform's own parts."""
    return EstimatesService(platform.core, Outlook(platform.core, platform.executor), lambda: None)


async def ready(platform: Platform, report: pb.CompletePreflightRequest | None = None) -> EstimateObject:
    """An estimate whose preflight has ended well."""
    estimates = service(platform)
    made = await estimates.create(PRINCIPAL, platform.request(), wait_seconds=0)
    identity = await platform.claim(made.id)
    await platform.training.complete_preflight(identity, report or preflight_report())
    await platform.end_run(identity)
    return await estimates.get(PRINCIPAL, made.id)


async def test_an_estimate_tells_what_the_job_would_take(each_platform: Platform) -> None:
    report = preflight_report()
    report.report.seconds = 60
    report.report.memory.CopyFrom(pb.MemoryFit(needed_bytes=10, available_bytes=20, capacity_bytes=30, fits=True))
    report.report.findings.add(code="duplicate_rows", message="Two rows are the same.", severity=pb.SEVERITY_WARNING)
    shown = await ready(each_platform, report)

    assert (shown.status, shown.error, shown.rows, shown.tokens, shown.steps) == ("ready", None, 10, 200, 6)
    assert shown.trained_tokens == 600
    assert shown.hyperparameters.n_epochs == 3
    assert [(each.name, each.reason) for each in shown.resolved] == [("n_epochs", "10 rows")]
    assert shown.memory is not None
    assert shown.memory.model_dump() == {"needed_bytes": 10, "available_bytes": 20, "fits": True}
    assert shown.seconds == 60
    assert shown.queue is not None
    assert (shown.queue.position, shown.queue.expected_start) == (1, int(each_platform.core.clock()))
    assert [finding["code"] for finding in shown.findings] == ["duplicate_rows"]
    assert shown.cost is None


async def test_a_price_gives_a_cost(tmp_path: Path) -> None:
    async with open_core(tmp_path / "home", price_per_million_tokens=5.0, price_currency="EUR") as core:
        shown = await ready(await make_platform(core))
    assert shown.cost is not None
    assert shown.cost.model_dump() == {"amount": 0.003, "currency": "EUR"}


async def test_no_job_route_knows_an_estimate(platform: Platform) -> None:
    shown = await ready(platform)
    fine_tunes, history = platform.fine_tunes, platform.history
    assert (await fine_tunes.list(PRINCIPAL)).data == []
    for call in (fine_tunes.get, fine_tunes.cancel, fine_tunes.resume, history.list_events, history.list_metrics):
        with pytest.raises(NotFoundError):
            await call(PRINCIPAL, shown.id)
    with pytest.raises(InvalidRequestError):
        await fine_tunes.list(PRINCIPAL, after=shown.id)
    await platform.scheduler.run_once()
    assert platform.executor.launches == {}


async def test_a_complete_estimate_keeps_no_file(platform: Platform) -> None:
    files = FilesService(platform.core)
    made = await service(platform).create(PRINCIPAL, platform.request(), wait_seconds=0)
    with pytest.raises(ConflictError):
        await files.delete(PRINCIPAL, platform.training_file)
    await platform.training.complete_preflight(await platform.claim(made.id), preflight_report())
    await files.delete(PRINCIPAL, platform.training_file)


async def test_waiting_ends_with_the_preflight(platform: Platform) -> None:
    estimates = service(platform)
    waiting = asyncio.create_task(estimates.create(PRINCIPAL, platform.request(), wait_seconds=60))
    row = await new_row_of(platform, waiting)
    identity = await platform.claim(row)
    failure = pb.Failure(code="invalid_row", message="Row 3 has no answer.", param="training_file", row=3)
    await platform.training.fail_run(identity, pb.FailRunRequest(cause=pb.FAILURE_CAUSE_USER, failures=[failure]))
    async with asyncio.timeout(30):
        shown = await waiting
    assert shown.status == "failed"
    assert shown.error is not None
    assert (shown.error.code, shown.error.param, shown.queue) == ("invalid_row", "training_file", None)


@pytest.mark.parametrize("wait_seconds", [-1.0, 61.0, float("nan")])
async def test_waiting_has_limits(platform: Platform, wait_seconds: float) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await service(platform).create(PRINCIPAL, platform.request(), wait_seconds)
    assert caught.value.param == "wait_seconds"


async def test_estimates_are_refused_for_what_jobs_are_refused_for(platform: Platform) -> None:
    for changes in ({"model": "gpt-5"}, {"training_file": "file-x"}, {"training": {"lora_rank": 512}}):
        with pytest.raises(InvalidRequestError):
            await service(platform).create(PRINCIPAL, platform.request(**changes), 0)


async def test_a_tuned_model_may_be_the_start(platform: Platform) -> None:
    model = await tuned(platform)
    shown = await service(platform).create(PRINCIPAL, platform.request(model=model), wait_seconds=0)
    assert shown.model == model
    identity = await platform.claim(shown.id)
    assert (await platform.training.get_spec(identity)).warm_start.kind == pb.ARTIFACT_KIND_ADAPTER


async def test_jobs_and_other_projects_estimates_are_no_estimates(platform: Platform) -> None:
    shown, job_id = await ready(platform), await platform.create()
    for principal, name in (
        (PRINCIPAL, job_id),
        (PRINCIPAL, "\x00"),
        (Principal(project_id="other", key_id="k"), shown.id),
    ):
        with pytest.raises(NotFoundError):
            await service(platform).get(principal, name)


async def new_row_of(platform: Platform, waiting: asyncio.Task[EstimateObject]) -> str:
    """The id of the estimate that is being waited for."""
    while True:
        await asyncio.sleep(0)
        assert not waiting.done(), "the call ended without waiting"
        await platform.scheduler.run_once()
        for launch in platform.executor.launches.values():
            identity = platform.core.signer.read_attempt_token(launch.token)
            assert identity is not None
            return identity.job_id
