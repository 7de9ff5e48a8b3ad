"""Projects, keys, usage and the audit log as an operator types and reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.support.core import open_core
from tunesmith_server import __main__ as command
from tunesmith_server.audit.service import AuditLog
from tunesmith_server.calls import Call
from tunesmith_server.command_core import read_installation
from tunesmith_server.projects.service import ProjectsService
from tunesmith_server.projects.usage import UsageService
from tunesmith_server.projects.usage_repository import UsageLine

Run = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose database has its tables already, which is quicker than migrating it for every command."""
    monkeypatch.setattr("tunesmith_server.db.migrate.upgrade", lambda url: None)
    return tmp_path / "home"


@pytest.fixture
async def run(home: Path) -> Run:
    async with open_core(home) as core:
        await ProjectsService(core).ensure_first_key()

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(command.app, [*arguments, "--home", str(home)])

    return call


def test_projects_are_made_limited_and_archived(run: Run) -> None:
    assert run("projects", "create", "Team A", "--id", "team-a").stdout == "team-a\n"
    taken = run("projects", "create", "Again", "--id", "team-a")
    assert (taken.exit_code, "already" in taken.stderr) == (1, True)

    shown = run("projects", "quota", "team-a", "max_jobs=3", "share=2.5").stdout
    assert "max_jobs  3\n" in shown
    assert "max_running  no limit  (default)\n" in shown
    assert "max_jobs  no limit  (default)\n" in run("projects", "quota", "team-a", "max_jobs=default").stdout
    for wrong in ("max_jobs", "max_jobs=many", "max_cats=1", "share=0"):
        assert run("projects", "quota", "team-a", wrong).exit_code == 1

    run("projects", "archive", "team-a")
    listed = run("projects", "list").stdout
    assert "default  " in listed
    assert "archived" in listed
    assert "share=2.5" in listed


def test_keys_have_scopes_and_an_end_and_are_rotated(run: Run) -> None:
    made = run("keys", "create", "--name", "ci", "--scopes", "files.read, inference", "--expires-in-days", "7")
    key_id, key = made.stdout.split()
    new_id, new = run("keys", "rotate", key_id, "--overlap-hours", "0").stdout.split()
    assert new != key

    lines = {line.split()[0]: line for line in run("keys", "list").stdout.splitlines()}
    assert "files.read,inference" in lines[new_id]
    assert "until" in lines[key_id]
    assert all(secret not in "".join(lines.values()) for secret in (key, new))
    assert "only these" in run("keys", "create", "--scopes", "everything").stderr


def test_keys_opt_in_to_captures(run: Run) -> None:
    key_id = run("keys", "create", "--capture").stdout.split()[0]
    assert "  captured" in line_of(run, key_id)
    assert "is not kept from now on" in run("keys", "capture", key_id, "--off").stdout
    assert "  not captured" in line_of(run, key_id)
    run("keys", "capture", key_id)
    assert "  captured" in line_of(run, run("keys", "rotate", key_id).stdout.split()[0])
    assert run("keys", "capture", "key_none").exit_code == 1


def line_of(run: Run, key_id: str) -> str:
    """What the list says of a key."""
    (line,) = [line for line in run("keys", "list").stdout.splitlines() if line.startswith(key_id)]
    return str(line)


def test_a_wrong_home_is_named_and_left_alone(tmp_path: Path) -> None:
    wrong = tmp_path / "elsewhere"
    for command_line in (("keys", "create"), ("projects", "list"), ("audit",), ("usage",)):
        answer = CliRunner().invoke(command.app, [*command_line, "--home", str(wrong)])
        assert (answer.exit_code, f"There is no installation in {wrong}." in answer.stderr) == (1, True)
    assert not wrong.exists()


def test_with_a_database_elsewhere_it_is_the_secret_that_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", "postgresql://nowhere.invalid/tunesmith")
    with pytest.raises(typer.Exit):
        read_installation(tmp_path)
    (tmp_path / "secret_key").write_text("there")
    assert read_installation(tmp_path).home == tmp_path


async def test_usage_and_the_audit_log_are_shown(run: Run, home: Path) -> None:
    async with open_core(home) as core:
        core.clock.now = time.time()  # type: ignore[attr-defined]
        line = UsageLine("default", "key_1", "m", "inference", int(time.time()), 1, 2, 3)
        await UsageService(core).take_report("g", 1, [line])
        log = AuditLog(core)
        log.record(Call("req_1", "POST /v1/files", "default", "key_1", "file-1"))
        await log.flush()

    # In a thread: a command has an event loop of its own.
    usage = await asyncio.to_thread(run, "usage")
    assert "default  key_1  m  inference  1 requests  2 in  3 out  0 device-seconds" in usage.stdout
    audit = await asyncio.to_thread(run, "audit", "--project", "default")
    assert audit.stdout.split()[1:] == ["default", "key_1", "file.created", "file-1", "ok"]
    assert (await asyncio.to_thread(run, "audit", "--project", "other")).stdout == ""
