"""The command line: by typer's runner, and as a real process."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.support.archives import tar_of
from tests.support.fake_answers import json_answer
from tests.support.fake_api import API_KEY, FakeApi, Fault
from tunesmith import Tunesmith, __version__
from tunesmith.cli import app

MODEL = "smollm2-135m-instruct"
TUNED = f"ft:{MODEL}:default:tickets:abcd1234"

Run = Callable[..., Result]


@pytest.fixture
def run(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against the fake API; output is split into stdout and stderr."""
    monkeypatch.setenv("TUNESMITH_API_KEY", API_KEY)
    monkeypatch.setenv("TUNESMITH_BASE_URL", api.url)
    monkeypatch.setenv("TZ", "UTC")
    return lambda *arguments, **options: CliRunner().invoke(app, list(map(str, arguments)), **options)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A local training file."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": []}\n')
    return path


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


class TestTop:
    def test_version(self, run: Run) -> None:
        assert run("--version").stdout == f"tunesmith {__version__}\n"

    @pytest.mark.parametrize("command", [[], ["files"], ["fine-tunes"], ["models"]])
    def test_help_needs_no_key(self, run: Run, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
        monkeypatch.delenv("TUNESMITH_API_KEY")
        result = run(*command, "--help")
        assert (result.exit_code, "Usage" in result.stdout) == (0, True)

    def test_key_file(self, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("TUNESMITH_API_KEY")
        key_file = tmp_path / "api_key"
        key_file.write_text(f"{API_KEY}\n")
        assert MODEL in run("--api-key-file", key_file, "models", "list").stdout


class TestErrors:
    def test_one_sentence_with_its_code(self, run: Run) -> None:
        result = run("fine-tunes", "get", "ftjob-none")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "There is no ftjob-none. (code: not_found)\n"

    def test_no_key(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TUNESMITH_API_KEY")
        result = run("models", "list")
        assert result.exit_code == 1
        assert "(code: missing_api_key)" in result.stderr

    def test_no_server(self, run: Run, api: FakeApi) -> None:
        api.stop()
        result = run("models", "list")
        assert result.exit_code == 1
        assert "is it running? (code: connection_failed)" in result.stderr

    def test_missing_path(self, run: Run) -> None:
        result = run("fine-tunes", "create", "none.jsonl", "--model", MODEL)
        assert result.exit_code == 1
        assert result.stderr == "Neither the id of an uploaded file nor a local file: none.jsonl\n"

    def test_all_problems_of_a_file(self, run: Run, api: FakeApi, rows: Path) -> None:
        problems = [{"code": "invalid_json", "message": f"Line {line} is not valid JSON."} for line in (7, 9)]
        error = {"message": "Line 7 is not valid JSON. There is 1 more.", "code": "invalid_json", "problems": problems}
        api.faults.append(Fault(json_answer({"error": error}, 400)))
        assert run("files", "upload", rows).stderr.splitlines() == [
            "Line 7 is not valid JSON. There is 1 more. (code: invalid_json)",
            "  Line 7 is not valid JSON. (code: invalid_json)",
            "  Line 9 is not valid JSON. (code: invalid_json)",
        ]

    def test_impossible_id(self, run: Run, api: FakeApi) -> None:
        result = run("files", "delete", "..")
        assert (result.exit_code, result.stderr) == (1, "An id is expected, not '..'.\n")
        assert api.received == []

    def test_bad_metadata(self, run: Run) -> None:
        result = run("fine-tunes", "create", "file-1", "--model", MODEL, "--metadata", "team")
        assert "--metadata takes KEY=VALUE, not 'team'." in result.stderr

    def test_it_is_red_on_a_terminal(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert "\x1b[31mThere is no file-none." in run("files", "content", "file-none").stderr


class TestFiles:
    def test_upload_list_content_delete(self, run: Run, rows: Path, tmp_path: Path) -> None:
        file_id = run("files", "upload", rows).stdout.strip()
        assert json.loads(run("files", "list", "--json").stdout)[0]["id"] == file_id
        listed = run("files", "list").stdout.splitlines()
        assert listed[0].split() == ["ID", "NAME", "PURPOSE", "BYTES", "STATUS", "CREATED"]
        assert listed[1].split()[:5] == [file_id, "rows.jsonl", "fine-tune", "17", "processed"]
        assert run("files", "content", file_id).stdout_bytes == rows.read_bytes()
        copy = tmp_path / "copy.jsonl"
        run("files", "content", file_id, "-o", copy)
        assert copy.read_bytes() == rows.read_bytes()
        assert run("files", "delete", file_id).stdout == f"Deleted {file_id}\n"
        assert json.loads(run("files", "list", "--json").stdout) == []

    def test_upload_that_expires(self, api: FakeApi, run: Run, rows: Path) -> None:
        assert run("files", "upload", rows, "--expires-after", "3600").exit_code == 0
        assert b'name="expires_after[seconds]"\r\n\r\n3600\r\n' in api.received[-1].body

    def test_upload_as_json(self, run: Run, rows: Path) -> None:
        assert json.loads(run("files", "upload", rows, "--json").stdout)["filename"] == "rows.jsonl"


class TestFineTunesCreate:
    def test_every_option_arrives(self, run: Run, api: FakeApi, rows: Path) -> None:
        options = (
            "--validation-file file-7 --suffix tickets --seed 3 --n-epochs 2 --batch-size 4 --weights lora "
            "--learning-rate-multiplier 0.5 --lora-rank 8 --lora-alpha 16 --long-rows cut --rslora "
            "--lora-targets attention --lora-targets up_proj "
            "--metadata team=support --metadata a=b=c --wandb-project tickets --mlflow-experiment support"
        )
        result = run("fine-tunes", "create", rows, "--model", MODEL, *options.split())
        (job_id,) = api.jobs
        follow = f"Follow it: tunesmith fine-tunes events {job_id} --follow"
        assert result.stdout == f"Created {job_id}\n{follow}\n"
        assert api.received[-1].json == {
            "model": MODEL,
            "training_file": "file-1",
            "validation_file": "file-7",
            "suffix": "tickets",
            "seed": 3,
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}},
            },
            "training": {
                "weights": "lora",
                "lora_rank": 8,
                "lora_alpha": 16.0,
                "lora_targets": ["attention", "up_proj"],
                "use_rslora": True,
                "long_rows": "cut",
            },
            "metadata": {"team": "support", "a": "b=c"},
            "integrations": [
                {"type": "wandb", "wandb": {"project": "tickets"}},
                {"type": "mlflow", "mlflow": {"experiment": "support"}},
            ],
        }

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


class TestFineTunesOther:
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

    def test_a_report(self, run: Run, api: FakeApi, tmp_path: Path) -> None:
        page = tmp_path / "job.html"
        assert "job.html" in run("fine-tunes", "report", "ftjob-1", "-o", page).stdout
        assert page.read_text(encoding="utf-8") == "<!doctype html><title>ftjob-1 – report</title>"

    def test_an_estimate(self, run: Run, api: FakeApi, rows: Path) -> None:
        shown = run("fine-tunes", "estimate", rows, "--model", MODEL, "--n-epochs", "3").stdout
        lines = [line.split() for line in shown.splitlines()]
        assert ["trained", "tokens", "600"] in lines
        assert ["time", "0:01:30"] in lines
        assert ["fits", "yes"] in lines
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


class TestModels:
    def test_download(self, run: Run, api: FakeApi, tmp_path: Path) -> None:
        api.archives[TUNED] = tar_of({"config.json": b"{}"})
        result = run("models", "download", TUNED, "--merged", "-o", tmp_path / "model")
        assert result.stdout == f"{tmp_path / 'model' / 'config.json'}\n"
        assert api.received[-1].query == {"merged": "true"}

    def test_upload(self, run: Run, api: FakeApi, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        result = run("models", "upload", tmp_path, "--base", MODEL, "--suffix", "mine")
        name = result.stdout.strip()
        assert name.startswith(f"ft:{MODEL}:default:mine:")
        assert json.loads(run("models", "upload", tmp_path, "--base", MODEL, "--json").stdout)["status"] == "importing"

    def test_an_upload_that_is_followed_says_why_it_failed(self, run: Run, api: FakeApi, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        error = {"code": "config_differs", "message": "It is another one.", "param": "base_model"}
        name = f"ft:{MODEL}:default::abcd2"
        api.futures[name] = deque([lambda: api.models[name].update(status="failed", error=error)])
        result = run("models", "upload", tmp_path, "--base", MODEL, "--follow")
        assert result.exit_code == 1
        assert "It is another one." in result.stderr
        assert "config_differs" in result.stderr

    def test_list_and_delete(self, run: Run, api: FakeApi) -> None:
        assert run("models", "list").stdout.splitlines()[1].split()[:2] == [MODEL, "tunesmith"]
        assert json.loads(run("models", "list", "--json").stdout)[0]["id"] == MODEL
        assert run("models", "delete", MODEL).stdout == f"Deleted {MODEL}\n"
        assert api.models == {}


class TestChat:
    @pytest.fixture(autouse=True)
    def answers(self, api: FakeApi) -> None:
        """Let the model say hello, with a control sequence that must not reach the terminal."""
        deltas = ("Hel", "lo\u001b[2J")
        chunks = [
            {"id": "c", "created": 1, "model": MODEL, "choices": [{"index": 0, "delta": {"content": text}}]}
            for text in deltas
        ]
        pieces = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
        api.stream_pieces = [*pieces, b"data: [DONE]\n\n"]

    def test_one_message(self, run: Run, api: FakeApi) -> None:
        result = run("chat", MODEL, "Hi", "--system", "Be kind.", "--temperature", "0", "--max-tokens", "9")
        assert result.stdout == "Hello[2J\n"
        assert api.received[0].json == {
            "model": MODEL,
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
            "stream": True,
            "temperature": 0.0,
            "max_tokens": 9,
        }

    def test_a_conversation_keeps_what_was_said(self, run: Run, api: FakeApi) -> None:
        result = run("chat", MODEL, input="Hi\n\nAgain\n")
        assert result.exit_code == 0
        assert [message["content"] for message in api.received[1].json["messages"]] == ["Hi", "Hello\x1b[2J", "Again"]

    def test_unknown_model(self, run: Run) -> None:
        result = run("chat", "ft:none", "Hi")
        assert (result.exit_code, "(code: model_not_found)" in result.stderr) == (1, True)


class TestProcess:
    """The installed command itself."""

    def test_upload_and_interrupted_follow(self, api: FakeApi, client: Tunesmith, rows: Path) -> None:
        command = str(Path(sys.executable).with_name("tunesmith"))
        environment = os.environ | {"TUNESMITH_API_KEY": API_KEY, "TUNESMITH_BASE_URL": f"{api.url}/v1"}
        arguments = [command, "fine-tunes", "create", str(rows), "--model", MODEL, "--follow"]
        # A shell starts what it puts into the background deaf to Ctrl-C, and so would be what the tests start.
        hearing = signal.signal(signal.SIGINT, signal.default_int_handler)
        with subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            signal.signal(signal.SIGINT, hearing)
            try:
                assert process.stdout is not None
                job_id = process.stdout.readline().split()[-1]
                api.add_event(job_id, "it lives")
                assert process.stdout.readline().endswith("it lives\n")
                process.send_signal(signal.SIGINT)
                _, stderr = process.communicate(timeout=20)
            finally:
                process.kill()
        assert process.returncode == 130
        assert f"Follow it again: tunesmith fine-tunes events {job_id} --follow" in stderr
        assert client.fine_tunes.retrieve(job_id).status == "queued"
