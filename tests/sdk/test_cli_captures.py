"""`tunesmith captures`: what it sends and what it shows."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from tests.sdk.resources.test_captures import Captures, server
from tests.support.fake_api import API_KEY
from tunesmith.cli import app

__all__ = ["server"]

Run = Callable[..., Result]


@pytest.fixture
def run(server: tuple[Captures, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against the server."""
    monkeypatch.setenv("TUNESMITH_API_KEY", API_KEY)
    monkeypatch.setenv("TUNESMITH_BASE_URL", server[1])
    return lambda *arguments: CliRunner().invoke(app, ["captures", *map(str, arguments)])


def test_captures_are_shown_and_deleted(run: Run, server: tuple[Captures, str]) -> None:
    listed = run("list", "--metadata", "team=a").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["ID", "chatcmpl-1", "chatcmpl-2", "chatcmpl-3"]
    assert server[0].calls[0][2]["metadata[team]"] == "a"
    assert run("get", "chatcmpl-1").stdout.splitlines() == [
        "system: Be brief.",
        "user: Add one.",
        "assistant: Sure. add({})",
    ]
    assert json.loads(run("get", "chatcmpl-1", "--json").stdout)["metadata"] == {"team": "a"}
    assert run("delete", "chatcmpl-1", "chatcmpl-2").stdout == "Deleted chatcmpl-1\nDeleted chatcmpl-2\n"


def test_a_dataset_is_made(run: Run, server: tuple[Captures, str]) -> None:
    asked = run("dataset", "mine.jsonl", "--model", "m", "--since", "1970-01-02", "--limit", 5, "--keep-duplicates")
    assert asked.stdout.splitlines() == [
        "file-1",
        "3 rows; left out: 1 duplicates, 0 that no row can be made of",
    ]
    assert server[0].calls[0][3] == {
        "filename": "mine.jsonl",
        "model": "m",
        "since": 86400,
        "limit": 5,
        "deduplicate": False,
    }
    assert json.loads(run("dataset", "--json").stdout)["id"] == "file-1"
    assert "KEY=VALUE" in run("dataset", "--metadata", "team").stderr


def test_a_list_is_longer_than_a_page(run: Run, server: tuple[Captures, str]) -> None:
    assert [each["id"] for each in json.loads(run("list", "--limit", 2, "--json").stdout)] == [
        "chatcmpl-1",
        "chatcmpl-2",
    ]
    assert len(json.loads(run("list", "--limit", 300, "--json").stdout)) == 3
    assert [call[2]["limit"] for call in server[0].calls] == ["2", "100", "100"]


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("1970-01-02T00:00:00", 86400), ("1970-01-02T00:00:00+02:00", 79200), ("1970-01-02T00:00:00Z", 86400)],
)
def test_a_time_may_have_an_offset(run: Run, server: tuple[Captures, str], given: str, seconds: int) -> None:
    assert run("dataset", "--since", given, "--until", given).exit_code == 0
    asked = server[0].calls[0][3]
    assert isinstance(asked, dict)
    assert (asked["since"], asked["until"]) == (seconds, seconds)
