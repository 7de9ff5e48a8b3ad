"""`tunesmith deployments`: what it sends and what it shows."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from tests.sdk.resources.test_deployments import A, B, Deployments, server
from tests.support.fake_api import API_KEY
from tunesmith.cli import app

__all__ = ["server"]

Run = Callable[..., Result]


@pytest.fixture
def run(server: tuple[Deployments, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command against the server."""
    monkeypatch.setenv("TUNESMITH_API_KEY", API_KEY)
    monkeypatch.setenv("TUNESMITH_BASE_URL", server[1])
    return lambda *arguments: CliRunner().invoke(app, ["deployments", *map(str, arguments)])


def test_a_canary_and_the_way_back(run: Run, server: tuple[Deployments, str]) -> None:
    shown = run("create", "bot", A, "--pinned").stdout.splitlines()
    assert shown[0] == "bot, version 1, pinned"
    assert shown[2].split() == [A, "1", "ready"]
    assert run("update", "bot", f"{A}=9", f"{B}=1").stdout.splitlines()[0] == "bot, version 2, pinned"
    assert server[0].calls[-1][2] == {"targets": [{"model": A, "weight": 9}, {"model": B, "weight": 1}]}
    assert run("rollback", "bot").stdout.splitlines()[2].split() == [A, "1", "ready"]
    listed = run("versions", "bot").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["VERSION", "3", "2", "1"]
    assert listed[2].split()[-2:] == [f"{A}=9", f"{B}=1"]
    assert run("list").stdout.splitlines()[1].split() == ["bot", "3", "yes", f"{A}=1"]
    assert json.loads(run("get", "bot", "--json").stdout)["version"] == 3
    assert run("delete", "bot").stdout == "Deleted bot\n"


def test_a_weight_is_a_number(run: Run) -> None:
    result = run("create", "bot", f"{A}=much")
    assert result.exit_code == 1
    assert "whole number" in result.stderr


def test_a_model_is_named_once(run: Run, server: tuple[Deployments, str]) -> None:
    for verb in ("create", "update"):
        result = run(verb, "bot", f"{A}=9", A)
        assert (result.exit_code, result.stderr) == (1, f"{A} is named twice.\n")
    assert server[0].calls == []


def test_versions_are_more_than_a_page(run: Run, server: tuple[Deployments, str]) -> None:
    server[0].history += [[{"model": A, "weight": 1}]] * 130
    for limit, oldest in ((120, 11), (500, 1), (100, 31)):
        listed = json.loads(run("versions", "bot", "--limit", limit, "--json").stdout)
        assert [each["version"] for each in listed] == list(range(130, oldest - 1, -1))
