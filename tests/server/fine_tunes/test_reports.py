"""Reports: what a job tells about its result, with texts only for who may read the file while it is there."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

import pytest

from tests.server.training.test_results import checkpoint_request, said
from tests.support.artifacts import upload
from tests.support.factories import PRINCIPAL, Platform, preflight_report
from tunesmith_proto.training.v1 import training_pb2 as pb
from tunesmith_server.db.tables import StepMetricRow
from tunesmith_server.files import repository as files
from tunesmith_server.fine_tunes import report_page, reports, repository
from tunesmith_server.fine_tunes.history_schemas import MetricsObject
from tunesmith_server.fine_tunes.reports import ReportsService
from tunesmith_server.fine_tunes.schemas import Evaluation, Score

SECRET = "<script>alert('row three')</script>"


async def finished(platform: Platform) -> str:
    """A job whose third validation row flipped; that row holds markup."""
    rows = [json.dumps({"prompt": f"p{index}", "completion": SECRET if index == 3 else "c"}) for index in range(1, 6)]
    async with platform.core.database.read() as session:
        file = await files.get(session, "default", platform.validation_file)
    assert file is not None
    await platform.core.store.put_bytes(file.storage_key, "\n".join(rows).encode())
    identity = await platform.start_preflight(validation_file=platform.validation_file)
    found = preflight_report()
    found.report.resolved.add(name="batch_size", value="4", reason="50 < 100 steps")
    found.report.findings.add(code="long", message="Rows are cut.", severity=pb.SEVERITY_WARNING, rows=[8])
    await platform.training.complete_preflight(identity, found)
    await platform.end_run(identity)
    identity = await platform.claim(identity.job_id)
    request = await checkpoint_request(platform, identity, 2)
    await platform.training.commit_checkpoint(identity, request)
    metrics = [pb.StepMetrics(step=step, train_loss=2 / step, full_valid_loss=1.0) for step in (1, 2)]
    await platform.training.heartbeat(identity, pb.HeartbeatRequest(sequence=1, metrics=metrics))
    item = pb.FlippedItem(topic="code", prompt="Which & why?", right=False)
    evaluation = pb.Evaluation(
        rows=5,
        base=pb.Score(loss=2.0, exact_match=0.25),
        tuned=pb.Score(loss=0.5, exact_match=0.75),
        flipped_to_right=1,
        flips=[pb.FlippedRow(row=3, right=True), pb.FlippedRow(row=99, right=True)],
        forgetting=pb.Forgetting(items=40, base=pb.Score(loss=3.0), tuned=pb.Score(loss=4.0), flips=[item]),
    )
    results = await upload(platform.core, f"runs/{identity.job_id}/e2", {"results.csv": b"step\n"})
    done = pb.CompleteTrainingRequest(step=2, trained_tokens=9, evaluation=evaluation, result_files=said(results))
    await platform.training.complete_training(identity, done)
    return identity.job_id


async def test_a_report_tells_all_of_a_job_and_escapes_it(each_platform: Platform) -> None:
    job_id = await finished(each_platform)

    page = await ReportsService(each_platform.core).html(PRINCIPAL, job_id)

    assert "<polyline" in page
    for told in ("25% →", "75%", "2 →", "Which &amp; why?", "<td>99</td><td>wrong</td><td>right</td>", "Rows are cut."):
        assert told in page
    assert "<td>batch_size</td><td>4</td><td>50 &lt; 100 steps</td>" in page
    assert "alert(&#x27;row three&#x27;)" in page
    assert "<script" not in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


@pytest.mark.parametrize("stride", [1, 10])
async def test_of_a_long_run_enough_steps_for_a_curve_are_read(each_platform: Platform, stride: int) -> None:
    """A run that reports each tenth step only is thinned like any other."""
    job_id = await each_platform.create()
    await store_losses(each_platform, job_id, [number * stride for number in range(1, 1002)], validated=7 * stride)

    async with each_platform.core.database.read() as session:
        stored = await repository.count_metrics(session, job_id)
        some = await repository.list_losses(session, job_id, stored=stored, about=10)
        every = await repository.list_losses(session, job_id, stored=stored, about=1001)

    assert [row.step for row in some] == [stride * number for number in (1, 7, *range(102, 1001, 101), 1001)]
    assert [row._mapping for row in some][1] == {
        "step": 7 * stride,
        "train_loss": 0.5,
        "valid_loss": None,
        "full_valid_loss": 0.25,
    }
    assert (stored, len(every)) == (1001, 1001)


async def test_a_report_says_that_steps_are_left_out(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_STEPS", 10)
    job_id = await platform.create()
    await store_losses(platform, job_id, range(1, 11), validated=7)
    service = ReportsService(platform.core)
    assert "Drawn are" not in await service.html(PRINCIPAL, job_id)

    await store_losses(platform, job_id, range(11, 1002), validated=500)
    page = await service.html(PRINCIPAL, job_id)

    assert "Drawn are 13 of 1,001 training steps and 2 of 2 validation measurements." in page
    [line, *_] = re.findall(r'points="([^"]*)"', page)
    assert (len(line.split()), line.split()[-1][:6]) == (13, "986.0,")


async def store_losses(platform: Platform, job_id: str, steps: Sequence[int], validated: int) -> None:
    """Steps of the job, of which one has a validation loss."""
    async with platform.core.database.write() as session:
        for step in steps:
            full = 0.25 if step == validated else None
            data = {"step": step, "train_loss": 0.5, "valid_loss": None, "full_valid_loss": full, "tokens": 9}
            session.add(StepMetricRow(job_id=job_id, step=step, data=data))


def test_glances_and_losses_over_all_rows_are_no_one_line() -> None:
    glances = [MetricsObject(step=step, train_loss=1.0, valid_loss=0.4) for step in range(1, 9)]
    passes = [MetricsObject(step=step, train_loss=1.0, valid_loss=0.4, full_valid_loss=1.6) for step in (9, 18)]

    assert report_page._curve([*glances, *passes], 10).count("<circle") == 2
    assert report_page._curve([*glances, passes[0]], 9).count("<circle") == 9
    assert report_page._curve(passes[:1], 1).count("<circle") == 1


def test_a_model_of_an_earlier_step_is_said_to_be_one() -> None:
    score = Score(loss=1.0, token_accuracy=0.5, exact_match=0.5)
    of_2 = Evaluation(
        step=2, rows=1, held_out_from_training=True, base=score, tuned=score, flipped_to_right=0, flipped_to_wrong=0
    )
    steps = [MetricsObject(step=step, train_loss=1.0) for step in (1, 2, 3)]

    assert "that of step 2, where the validation loss was lowest; training went on to step 3." in report_page._chosen(
        of_2, steps
    )
    assert report_page._chosen(of_2, steps[:2]) == ""


def test_the_loss_of_preferences_is_one_of_pairs() -> None:
    pairs = Score(loss=0.69, token_accuracy=None, exact_match=None, preference_accuracy=0.5)
    assert report_page._side_by_side(pairs, pairs)[0][0] == "loss, nats per pair"


async def test_texts_need_the_scope_and_the_file(platform: Platform) -> None:
    job_id = await finished(platform)
    reports = ReportsService(platform.core)
    narrow = dataclasses.replace(PRINCIPAL, scopes=frozenset({"fine_tunes.read"}))

    assert "row three" not in await reports.html(narrow, job_id)
    assert "row three" in await reports.html(PRINCIPAL, job_id)
    async with platform.core.database.write() as session:
        await files.mark_deleted(session, platform.validation_file, 1)
    page = await reports.html(PRINCIPAL, job_id)
    assert "row three" not in page
    assert "<td>3</td><td>wrong</td><td>right</td>" in page


async def test_a_job_that_has_not_begun_has_a_report(platform: Platform) -> None:
    page = await ReportsService(platform.core).html(PRINCIPAL, await platform.create())

    assert "No steps so far." in page
    assert "Nothing yet: the files have not been validated." in page
    assert "it has not succeeded" in page
