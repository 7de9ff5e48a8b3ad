"""Owns how an operator's command gets its settings and a core, and how it fails: with a sentence and exit code 1.

It must not know any command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from tunesmith_server.application import open_core
from tunesmith_server.config import Settings
from tunesmith_server.core import Core
from tunesmith_server.errors import TunesmithError
from tunesmith_server.registry.catalogue import CatalogueError

Result = TypeVar("Result")
Home = Annotated[Path | None, typer.Option(help="Folder of the database, objects, runs and keys.")]


def read_settings(**options: object) -> Settings:
    """The settings of the environment with these options before them; ends the command when one is wrong."""
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = "TUNESMITH_" + "_".join(str(part) for part in first["loc"]).upper()
        raise failed(f"{name}: {first['msg']}.") from error


def read_installation(home: Path | None) -> Settings:
    """The settings of an installation that exists; ends the command where there is none.

    A key that is made in a folder with nothing in it would open no server.
    """
    settings = read_settings(home=home)
    if settings.database_url:
        exists = settings.secret_key is not None or (settings.home / "secret_key").exists()
    else:
        exists = (settings.home / "tunesmith.db").exists()
    if not exists:
        raise failed(
            f"There is no installation in {settings.home.resolve()}. Name its folder with --home or TUNESMITH_HOME; "
            "`tunesmithd up` and `tunesmithd migrate` make a new one."
        )
    return settings


def with_core(settings: Settings, work: Callable[[Core], Awaitable[Result]]) -> Result:
    """What `work` gives on a core that is open for it; ends the command with what an operator can act upon."""

    async def run() -> Result:
        async with open_core(settings) as core:
            return await work(core)

    try:
        return asyncio.run(run())
    except TunesmithError as error:
        raise failed(error.message) from error
    except (CatalogueError, ValueError) as error:
        raise failed(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise failed(f"The database or the home cannot be used: {error}") from error


def failed(message: str) -> typer.Exit:
    """Says why and returns what to raise."""
    typer.echo(f"tunesmithd: {message}", err=True)
    return typer.Exit(1)
