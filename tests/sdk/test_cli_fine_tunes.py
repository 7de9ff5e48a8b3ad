"""`tunesmith fine-tunes`: what it sends and what it shows."""

from __future__ import annotations

import functools
import json
from collections import deque
from pathlib import Path

import pytest

from tests.sdk.conftest import Pauses
from tests.sdk.test_cli import MODEL, TUNED, Run, rows, run
from tests.sdk.test_cli_models import interrupt
from tests.support.fake_answers import json_answer
from tests.support.fake_api import FakeApi, Fault
from tests.support.loopback_http import Answer

__all__ = ["rows", "run"]

ESTIMATE = ("fine-tunes", "estimate", "file-1", "--model", MODEL)
ESTIMATE_ID = "ftest-7"
WAITS = f"{ESTIMATE_ID} is validating the files.\n"


def let_jobs_finish(api: FakeApi, status: str = "succeeded", **values: object) -> None:
    """Give every job that will be created a short life: metrics, then this end."""
    add_job = api.add_job

    def with_future(**asked: object) -> str:
        job_id = add_job(**asked)
        api.add_event(job_id, "Created fine-tune")
        progress = {"phase": "training", "step": 3, "total_steps": 9, "remaining_seconds": 125.0}
        steps = (
            functools.partial(api.jobs[job_id].update, status="running", progress=progress),
            functools.partial(
                api.add_event,
                job_id,
                "Step 3/9",
                {"step": 3, "total_steps": 9, "train_loss": 1.25, "tokens": 300, "seconds": 2.0},
            ),
            functools.partial(api.jobs[job_id].update, status=status, progress=None, **values),
        )
        api.futures[job_id] = deque(steps)
        return job_id

    api.add_job = with_future  # type: ignore[method-assign] # the fake's own seam for jobs made over the wire


class TestCreate:
    def test_it_says_how_to_follow(self, run: Run, api: FakeApi, rows: Path) -> None:
        result = run("fine-tunes", "create", rows, "--model", MODEL)
        (job_id,) = api.jobs
        follow = f"Follow it: tunesmith fine-tunes events {job_id} --follow"
        assert result.stdout == f"Created {job_id}\n{follow}\n"

    def test_a_tuned_model_may_be_the_start(self, run: Run, api: FakeApi, rows: Path) -> None:
        assert run("fine-tunes", "create", rows, "--model", TUNED, "--json").exit_code == 1
        assert "model_not_found" in run("fine-tunes", "create", rows, "--model", TUNED).stderr
        api.models[TUNED] = api.models[MODEL] | {"id": TUNED}

        result = run("fine-tunes", "create", rows, "--model", TUNED, "--method", "dpo", "--json")

        assert json.loads(result.stdout)["model"] == TUNED
        assert api.received[-1].json["model"] == TUNED
        assert "training" not in api.received[-1].json

    def test_follow_prints_plain_lines_when_not_a_terminal(self, run: Run, api: FakeApi, rows: Path) -> None:
        scores = {"base": {"exact_match": 0.0, "loss": 2.0}, "tuned": {"exact_match": 0.96, "loss": 0.5}}
        let_jobs_finish(api, fine_tuned_model=TUNED, evaluation={"rows": 100} | scores)
        result = run("fine-tunes", "create", rows, "--model", MODEL, "--follow")
        (job_id,) = api.jobs
        lines = [line.partition("  ")[2] or line for line in result.stdout.splitlines()]
        assert lines == [
            f"Created {job_id}",
            "Created fine-tune",
            "step 3/9 · loss 1.2500 · 150 tokens/s · 0:02:05 left",
            "Base → tuned on 100 rows: exact match 0.0000 → 0.9600, loss 2.0000 → 0.5000",
            f"{job_id} succeeded: {TUNED}",
            f"Talk to it: tunesmith chat {TUNED}",
        ]
        assert result.exit_code == 0

    def test_a_failed_job_fails_the_command(self, run: Run, api: FakeApi, rows: Path) -> None:
        reason = {"code": "row_too_long", "message": "Row 7 is too long.", "param": "training_file"}
        let_jobs_finish(api, "failed", error=reason)
        result = run("fine-tunes", "create", rows, "--model", MODEL, "--follow")
        (job_id,) = api.jobs
        assert result.exit_code == 1
        assert result.stderr == f"Fine-tune {job_id} failed: Row 7 is too long. (code: row_too_long)\n"

    def test_as_json(self, run: Run, api: FakeApi, rows: Path) -> None:
        let_jobs_finish(api, fine_tuned_model=TUNED)
        created = run("fine-tunes", "create", rows, "--model", MODEL, "--json")
        assert json.loads(created.stdout)["status"] == "queued"
        finished = run("fine-tunes", "create", rows, "--model", MODEL, "--json", "--follow")
        assert json.loads(finished.stdout)["fine_tuned_model"] == TUNED

    def test_as_json_a_failed_job_fails_the_command(self, run: Run, api: FakeApi, rows: Path) -> None:
        let_jobs_finish(api, "failed", error={"code": "row_too_long", "message": "Row 7 is too long."})
        result = run("fine-tunes", "create", rows, "--model", MODEL, "--json", "--follow")
        assert (result.exit_code, json.loads(result.stdout)["status"]) == (1, "failed")


class TestOther:
    def test_list_get_cancel(self, run: Run, api: FakeApi) -> None:
        progress = {"phase": "training", "step": 3, "total_steps": 9, "remaining_seconds": 125.0}
        job_id = api.add_job(status="running", progress=progress)
        assert run("fine-tunes", "list").stdout.splitlines()[1].split()[:3] == [job_id, "running", MODEL]
        assert json.loads(run("fine-tunes", "list", "--json").stdout)[0]["id"] == job_id
        shown = run("fine-tunes", "get", job_id).stdout
        assert "training · step 3/9 · 0:02:05 left" in shown
        assert json.loads(run("fine-tunes", "get", job_id, "--json").stdout)["status"] == "running"
        assert run("fine-tunes", "cancel", job_id).stdout == f"{job_id} is cancelled.\n"

    def test_pause_and_resume(self, run: Run, api: FakeApi) -> None:
        job_id = api.add_job()
        assert run("fine-tunes", "pause", job_id).stdout == f"{job_id} is paused.\n"
        assert run("fine-tunes", "resume", job_id).stdout == f"{job_id} is queued.\n"

    def test_logs(self, run: Run, api: FakeApi) -> None:
        assert run("fine-tunes", "logs", "ftjob-1", "--attempt", "2").stdout == "attempt 2\n"
        api.faults.append(Fault(Answer(body=b"")))
        silent = run("fine-tunes", "logs", "ftjob-1")
        told = "This run has written nothing, or nothing of it is kept.\n"
        assert (silent.exit_code, silent.stdout, silent.stderr) == (0, "", told)

    def test_a_report(self, run: Run, api: FakeApi, tmp_path: Path) -> None:
        page = tmp_path / "job.html"
        assert "job.html" in run("fine-tunes", "report", "ftjob-1", "-o", page).stdout
        assert page.read_text(encoding="utf-8") == "<!doctype html><title>ftjob-1 – report</title>"

    def test_an_estimate(self, run: Run, rows: Path) -> None:
        result = run("fine-tunes", "estimate", rows, "--model", MODEL, "--n-epochs", "3")
        lines = [line.split() for line in result.stdout.splitlines()]
        assert ["trained", "tokens", "600"] in lines
        assert ["time", "0:01:30"] in lines
        assert ["fits", "yes"] in lines
        assert result.stderr == ""
        as_json = run("fine-tunes", "estimate", rows, "--model", MODEL, "--json").stdout
        assert json.loads(as_json)["status"] == "ready"

    def test_a_job_that_shall_not_start_by_itself(self, run: Run, api: FakeApi, rows: Path) -> None:
        run("fine-tunes", "create", rows, "--model", MODEL, "--no-start")
        assert api.received[-1].json["auto_start"] is False

    def test_events(self, run: Run, api: FakeApi) -> None:
        job_id = api.add_job()
        api.add_event(job_id, "first")
        api.add_event(job_id, "Step 1", {"step": 1, "total_steps": 2, "train_loss": 2, "valid_loss": 3.0})
        lines = run("fine-tunes", "events", job_id).stdout.splitlines()
        assert [line[10:] for line in lines] == ["first", "step 1/2 · loss 2.0000 · validation loss 3.0000"]
        as_json = run("fine-tunes", "events", job_id, "--json").stdout.splitlines()
        assert [json.loads(line)["message"] for line in as_json] == ["first", "Step 1"]

    def test_a_warning_is_coloured_as_when_it_is_followed(
        self, run: Run, api: FakeApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = api.add_job(status="cancelled")
        api.add_event(job_id, "Row 7 was cut.", level="warn")
        monkeypatch.setenv("FORCE_COLOR", "1")
        shown = run("fine-tunes", "events", job_id).stdout
        assert shown.startswith("\x1b[33m")
        assert shown in run("fine-tunes", "events", job_id, "--follow").stdout

    def test_a_paused_job_ends_the_following(self, run: Run, api: FakeApi) -> None:
        job_id = api.add_job(status="paused")
        api.add_event(job_id, "first")
        told = f"{job_id} is paused. Let it go on: tunesmith fine-tunes resume {job_id}\n"
        plain = run("fine-tunes", "events", job_id, "--follow")
        assert (plain.exit_code, plain.stdout[10:], plain.stderr) == (1, "first\n", told)
        as_json = run("fine-tunes", "events", job_id, "--follow", "--json")
        assert (as_json.exit_code, json.loads(as_json.stdout)["message"], as_json.stderr) == (0, "first", told)

    def test_a_job_that_waits_for_its_start_ends_the_following(self, run: Run, api: FakeApi, rows: Path) -> None:
        let_jobs_finish(api, "paused")
        result = run("fine-tunes", "create", rows, "--model", MODEL, "--no-start", "--follow", "--json")
        assert (result.exit_code, json.loads(result.stdout)["status"]) == (1, "paused")
        assert "tunesmith fine-tunes resume" in result.stderr

    def test_events_followed_as_json(self, run: Run, api: FakeApi) -> None:
        job_id = api.add_job(status="running")
        api.add_event(job_id, "first")
        steps = (lambda: api.add_event(job_id, "second"), lambda: api.jobs[job_id].update(status="succeeded"))
        api.futures[job_id] = deque(steps)
        result = run("fine-tunes", "events", job_id, "--follow", "--json")
        assert [json.loads(line)["message"] for line in result.stdout.splitlines()] == ["first", "second"]
        assert (result.exit_code, result.stderr) == (0, "")

    def test_a_list_is_longer_than_a_page(self, run: Run, api: FakeApi) -> None:
        for _ in range(130):
            api.add_job()
        listed = run("fine-tunes", "list", "--limit", 120, "--json")
        assert [job["id"] for job in json.loads(listed.stdout)] == list(reversed(api.jobs))[:120]
        assert [request.query["limit"] for request in api.received] == ["100", "100"]

    def test_events_followed_to_the_end(self, run: Run, api: FakeApi) -> None:
        let_jobs_finish(api, "cancelled")
        job_id = api.add_job()
        result = run("fine-tunes", "events", job_id, "--follow")
        assert (result.exit_code, result.stderr) == (1, f"{job_id} was cancelled.\n")

    def test_checkpoints(self, run: Run, api: FakeApi) -> None:
        job_id = api.add_job()
        checkpoint = {
            "id": "ftckpt_1",
            "object": "fine_tuning.job.checkpoint",
            "created_at": 1,
            "fine_tuning_job_id": job_id,
            "fine_tuned_model_checkpoint": f"{TUNED}:ckpt-step-9",
            "step_number": 9,
            "metrics": {"train_loss": 0.5},
        }
        api.checkpoints[job_id].append(checkpoint)
        shown = run("fine-tunes", "checkpoints", job_id).stdout.splitlines()
        assert shown[1].split() == ["9", f"{TUNED}:ckpt-step-9", "0.5"]
        assert json.loads(run("fine-tunes", "checkpoints", job_id, "--json").stdout)[0]["step_number"] == 9


@pytest.fixture
def validating(api: FakeApi) -> None:
    """Have the next estimate take its time, until a test gives it another status."""
    api.estimates[ESTIMATE_ID] = {"id": ESTIMATE_ID, "created_at": 1, "status": "validating_files", "model": MODEL}
    api.faults.append(Fault(json_answer(api.estimates[ESTIMATE_ID])))


@pytest.mark.usefixtures("validating")
class TestAnEstimateThatTakesItsTime:
    def test_it_is_waited_for(self, run: Run, api: FakeApi, pauses: Pauses) -> None:
        pauses.on_pause = lambda number: number == 40 and api.estimates[ESTIMATE_ID].update(status="ready", rows=10)
        result = run(*ESTIMATE)
        assert (result.exit_code, result.stderr) == (0, WAITS)
        assert ["rows", "10"] in [line.split() for line in result.stdout.splitlines()]

    def test_one_that_fails_fails_the_command(self, run: Run, api: FakeApi, pauses: Pauses) -> None:
        reason = {"code": "row_too_long", "message": "Row 7 is too long."}
        pauses.on_pause = lambda _: api.estimates[ESTIMATE_ID].update(status="failed", error=reason)
        result = run(*ESTIMATE, "--json")
        assert (result.exit_code, json.loads(result.stdout)["status"], result.stderr) == (1, "failed", WAITS)
        again = run("fine-tunes", "get-estimate", ESTIMATE_ID)
        assert (again.exit_code, again.stderr) == (1, "Row 7 is too long. (code: row_too_long)\n")

    def test_an_interrupted_one_can_be_read_again(self, run: Run, api: FakeApi, pauses: Pauses) -> None:
        pauses.on_pause = interrupt
        result = run(*ESTIMATE)
        command = ("fine-tunes", "get-estimate", ESTIMATE_ID)
        told = f"{ESTIMATE_ID} goes on without you. Look at it again: tunesmith {' '.join(command)}\n"
        assert (result.exit_code, result.stdout, result.stderr) == (130, "", WAITS + told)
        assert api.received[0].query == {"wait_seconds": "0"}

        pauses.on_pause = lambda _: api.estimates[ESTIMATE_ID].update(status="ready")
        assert json.loads(run(*command, "--json").stdout)["status"] == "ready"
