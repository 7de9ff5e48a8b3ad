"""`tunesmithd backup`: whole or not at all, of what it can copy. tests/deploy/test_restore.py goes on with a copy."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.core import open_core
from tunesmith_server import __main__ as command
from tunesmith_server import backup
from tunesmith_server.storage.filesystem import copy_objects


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with an object and keys, which nobody serves."""
    home = tmp_path / "home"
    asyncio.run(store(home, "files/default/file-1", b"rows"))
    for name in ("secret_key", "api_key"):
        (home / name).write_text(f"{name}\n")
        (home / name).chmod(0o600)
    return home


async def store(home: Path, key: str, content: bytes) -> None:
    async with open_core(home) as core:
        await core.store.put_bytes(key, content)


def run(home: Path, folder: Path) -> Any:
    return CliRunner().invoke(command.app, ["backup", "--home", str(home), str(folder)])


def test_a_copy_is_a_home(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "backups" / "monday"
    assert run(home, copy).exit_code == 0
    assert {path.name for path in copy.iterdir()} == {"tunesmith.db", "objects", "secret_key", "api_key"}
    assert (copy / "objects/files/default/file-1").read_bytes() == b"rows"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert stat.S_IMODE((copy / "secret_key").stat().st_mode) == 0o600
    assert [path.name for path in copy.parent.iterdir()] == ["monday"]
    # Also one that nobody has served.
    assert run(copy, tmp_path / "tuesday").exit_code == 0
    assert (tmp_path / "tuesday" / "objects/files/default/file-1").read_bytes() == b"rows"


def test_rows_of_a_copy_have_their_objects(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[Path] = []

    def copy_and_write(root: Path, target: Path) -> None:
        copy_objects(root, target)
        if not passes:
            # As the server does it: the object, then its row.
            asyncio.run(store(home, "files/default/file-2", b"more rows"))
            with closing(sqlite3.connect(home / "tunesmith.db")) as database:
                database.execute("INSERT INTO projects (id, name, quotas, created_at) VALUES ('late', '', '{}', 1)")
                database.commit()
        passes.append(target)

    monkeypatch.setattr(backup, "copy_objects", copy_and_write)
    assert run(home, tmp_path / "copy").exit_code == 0
    with closing(sqlite3.connect(tmp_path / "copy" / "tunesmith.db")) as database:
        assert database.execute("SELECT id FROM projects").fetchall() == [("late",)]
    assert (tmp_path / "copy/objects/files/default/file-2").read_bytes() == b"more rows"


def test_a_folder_that_is_there_stays_as_it_is(home: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    result = run(home, tmp_path / "copy")
    assert (result.exit_code, "exists already" in result.stderr) == (1, True)
    assert list((tmp_path / "copy").iterdir()) == []


def test_a_copy_that_fails_leaves_nothing(home: Path, tmp_path: Path) -> None:
    (home / "tunesmith.db").write_bytes(b"no database" * 1000)
    result = run(home, tmp_path / "backups" / "copy")
    assert (result.exit_code, "nothing of it is left" in result.stderr) == (1, True)
    assert list((tmp_path / "backups").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("TUNESMITH_DATABASE_URL", "postgresql://localhost/tunesmith"), ("TUNESMITH_STORAGE_URL", "s3://bucket/prefix")],
)
def test_what_others_keep_is_copied_with_their_tools(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    result = run(home, tmp_path / "copy")
    assert (result.exit_code, "PRODUCTION.md" in result.stderr) == (1, True)
    assert not (tmp_path / "copy").exists()


def test_a_secret_that_is_not_in_the_home_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_SECRET_KEY", "s" * 64)
    shown = run(home, tmp_path / "copy").stdout
    assert "keep that as well" in shown
    assert "s" * 64 not in shown


def test_a_folder_without_an_installation_has_nothing_to_copy(tmp_path: Path) -> None:
    assert "no installation" in run(tmp_path / "nowhere", tmp_path / "copy").stderr
