"""`tunesmith models`: what it sends and what it shows."""

from __future__ import annotations

import json
import re
from collections import deque
from pathlib import Path

import pytest

from tests.sdk.conftest import Pauses
from tests.sdk.test_cli import MODEL, TUNED, Run, run
from tests.support.archives import tar_of
from tests.support.fake_api import FakeApi

__all__ = ["run"]


def interrupt(number: int) -> None:
    """What Ctrl-C does to a pause."""
    raise KeyboardInterrupt


class TestDownload:
    def test_download(self, run: Run, api: FakeApi, tmp_path: Path) -> None:
        api.archives[TUNED] = tar_of({"config.json": b"{}"})
        result = run("models", "download", TUNED, "--merged", "-o", tmp_path / "model")
        assert result.stdout == f"{tmp_path / 'model' / 'config.json'}\n"
        assert api.received[-1].query == {"merged": "true"}

    def test_an_adapter_and_the_whole_model_go_into_different_folders(
        self, run: Run, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        api.archives[TUNED] = tar_of({"adapter_config.json": b"{}"})
        run("models", "download", TUNED)
        api.archives[TUNED] = tar_of({"config.json": b"{}"})
        run("models", "download", TUNED, "--merged")
        folder = TUNED.replace(":", "-")
        assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")) == [
            f"{folder}-merged/config.json",
            f"{folder}/adapter_config.json",
        ]

    def test_a_folder_of_the_other_kind_is_refused(self, run: Run, api: FakeApi, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").touch()
        api.archives[TUNED] = tar_of({"config.json": b"{}"})
        result = run("models", "download", TUNED, "--merged", "-o", tmp_path)
        told = "Choose an empty folder: adapter_config.json, which is no part of this model, is in"
        assert (result.exit_code, result.stderr) == (1, f"{told}: {tmp_path}\n")


class TestUpload:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A whole model, as far as the command looks."""
        (tmp_path / "config.json").write_text("{}")
        return tmp_path

    def test_upload(self, run: Run, folder: Path) -> None:
        name = run("models", "upload", folder, "--base", MODEL, "--suffix", "mine").stdout.strip()
        assert name.startswith(f"ft:{MODEL}:default:mine:")
        assert json.loads(run("models", "upload", folder, "--base", MODEL, "--json").stdout)["status"] == "importing"

    def test_a_followed_upload_ends_when_the_model_is_ready(self, run: Run, api: FakeApi, folder: Path) -> None:
        for number in (2, 4):
            name = f"ft:{MODEL}:default::abcd{number}"
            api.futures[name] = deque([lambda name=name: api.models[name].update(status="ready")])  # type: ignore[misc]
        assert run("models", "upload", folder, "--base", MODEL, "--follow").stdout == f"ft:{MODEL}:default::abcd2\n"
        as_json = run("models", "upload", folder, "--base", MODEL, "--follow", "--json")
        assert (json.loads(as_json.stdout)["status"], as_json.stderr) == ("ready", f"ft:{MODEL}:default::abcd4\n")

    @pytest.mark.parametrize("options", [(), ("--json",)])
    def test_an_interrupted_one_says_how_to_look_again(
        self, run: Run, folder: Path, pauses: Pauses, options: tuple[str, ...]
    ) -> None:
        pauses.on_pause = interrupt
        result = run("models", "upload", folder, "--base", MODEL, "--follow", *options)
        name = f"ft:{MODEL}:default::abcd2"
        assert result.exit_code == 130
        assert (result.stderr if options else result.stdout).startswith(f"{name}\n")
        assert f"{name} goes on without you. Look at it again: tunesmith models get {name}\n" in result.stderr

    def test_a_followed_one_says_why_it_failed(self, run: Run, api: FakeApi, folder: Path) -> None:
        error = {"code": "config_differs", "message": "It is another one.", "param": "base_model"}
        name = f"ft:{MODEL}:default::abcd2"
        api.futures[name] = deque([lambda: api.models[name].update(status="failed", error=error)])
        result = run("models", "upload", folder, "--base", MODEL, "--follow")
        assert result.exit_code == 1
        assert "It is another one." in result.stderr
        assert "config_differs" in result.stderr


def test_one_model_is_shown(run: Run, api: FakeApi) -> None:
    error = {"code": "config_differs", "message": "It is another one.", "param": "base_model"}
    api.models[TUNED] = api.models[MODEL] | {"id": TUNED, "status": "failed", "error": error}
    lines = [line.split(maxsplit=1) for line in run("models", "get", TUNED).stdout.splitlines()]
    assert lines[:2] == [["name", TUNED], ["status", "failed"]]
    assert lines[-1] == ["error", "It is another one. (code: config_differs)"]
    assert run("models", "get", MODEL).stdout.splitlines()[1].split() == ["status", "ready"]
    assert json.loads(run("models", "get", TUNED, "--json").stdout)["error"]["code"] == "config_differs"


def test_a_model_that_no_gateway_can_answer_with_yet(run: Run, api: FakeApi) -> None:
    loading = {"gateway": "gw-1", "engine": "base-1", "state": "loading", "reason": None, "since": 1, "in_flight": 0}
    failed = loading | {"engine": "base-2", "state": "failed", "reason": "There is no memory left."}
    api.models[MODEL] |= {"serving": {"state": "loading", "reason": None, "replicas": [loading]}}
    shown = run("models", "get", MODEL).stdout.splitlines()
    assert [line.split() for line in shown if line.startswith(("serving", "reason", "gw-1"))] == [
        ["serving", "loading"]
    ]

    api.models[MODEL] |= {
        "serving": {"state": "loading", "reason": "It is tried again.", "replicas": [loading, failed]}
    }
    shown = run("models", "get", MODEL).stdout.splitlines()
    assert [re.split(r"  +", line) for line in shown[-4:]] == [
        ["serving", "loading"],
        ["reason", "It is tried again."],
        ["gw-1 base-1", "loading"],
        ["gw-1 base-2", "failed: There is no memory left."],
    ]


def test_list_and_delete(run: Run, api: FakeApi) -> None:
    assert run("models", "list").stdout.splitlines()[1].split()[:2] == [MODEL, "tunesmith"]
    assert json.loads(run("models", "list", "--json").stdout)[0]["id"] == MODEL
    assert run("models", "delete", MODEL).stdout == f"Deleted {MODEL}\n"
    assert api.models == {}
