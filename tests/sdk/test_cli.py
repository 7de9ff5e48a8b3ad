"""The command line: by typer's runner, and as a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

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


class TestTop:
    def test_version(self, run: Run) -> None:
        assert run("--version").stdout == f"tunesmith {__version__}\n"

    @pytest.mark.parametrize("command", [[], ["files"], ["fine-tunes"], ["models"]])
    def test_help_needs_no_key(self, run: Run, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
        monkeypatch.delenv("TUNESMITH_API_KEY")
        result = run(*command, "--help")
        assert (result.exit_code, "Usage" in result.stdout) == (0, True)

    def test_help_in_80_columns_cuts_nothing_off(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        assert "--learning-rate-multiplier <float|auto>" in run("fine-tunes", "create", "--help").stdout
        for group in ([], ["files"], ["fine-tunes"], ["models"], ["deployments"], ["captures"]):
            commands = run(*group, "--help").stdout.partition("Commands:")[2].splitlines()
            assert commands
            assert not [line for line in commands if line.endswith("...")]

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
        assert "--api-key-file or set TUNESMITH_API_KEY" in result.stderr
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
