"""Owns copies of an embedded installation: database, objects and keys, taken while it serves; a copy is a home itself.

It must not know tables, nor what objects mean.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import make_url

from tunesmith_server.config import Settings
from tunesmith_server.storage.filesystem import copy_objects

_KEYS = ("secret_key", "api_key")


class BackupError(Exception):
    """There is no copy; the message says what to do."""


def back_up(settings: Settings, folder: Path) -> None:
    """Makes `folder`, whole or not at all. Raises BackupError, OSError or sqlite3.Error."""
    database, objects = _embedded(settings)
    if folder.exists():
        raise BackupError(f"{folder} exists already. Name a folder that does not.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    try:
        # Objects first, as most of the time goes there; then the rows; then what these name that came in between.
        copy_objects(objects, draft / "objects")
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("VACUUM INTO ?", [str(draft / "tunesmith.db")])
        copy_objects(objects, draft / "objects")
        for name in _KEYS:
            if (settings.home / name).exists():
                shutil.copy(settings.home / name, draft / name)
        os.sync()
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _embedded(settings: Settings) -> tuple[Path, Path]:
    """The files of database and objects; raises BackupError where they are somebody else's to copy."""
    database = make_url(settings.resolved_database_url)
    storage = urlsplit(settings.resolved_storage_url)
    if not database.drivername.startswith("sqlite") or storage.scheme != "file":
        raise BackupError(
            "This copies SQLite and a folder of objects. For PostgreSQL and S3 take their own tools: "
            "deploy/PRODUCTION.md has the commands."
        )
    return Path(database.database or ""), Path(unquote(storage.path))
