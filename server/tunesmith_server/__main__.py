"""Owns the `tunesmithd` command: what an operator can type, and the sentences they read.

It must not know how anything is done; each command calls one part.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from tunesmith_server.application import open_core, service_token
from tunesmith_server.config import Settings
from tunesmith_server.core import Core
from tunesmith_server.embedded import InferenceMode, gateway_environment
from tunesmith_server.errors import TunesmithError
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService
from tunesmith_server.registry import repository
from tunesmith_server.registry.base_models import BaseModelImporter
from tunesmith_server.registry.catalogue import CatalogueError
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.serve import StartError, serve
from tunesmith_server.telemetry import configure_logging

Result = TypeVar("Result")
Home = Annotated[Path | None, typer.Option(help="Folder of the database, objects, runs and keys.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="REST port.")]
GrpcPort = Annotated[int | None, typer.Option(min=1, max=65535, help="gRPC port.")]
Project = Annotated[str, typer.Option(help="Project of the key.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Runs and administers a Tunesmith installation.")
keys = typer.Typer(no_args_is_help=True, help="API keys.")
models = typer.Typer(no_args_is_help=True, help="Base models.")
app.add_typer(keys, name="keys")
app.add_typer(models, name="models")


def main() -> None:
    """Entry point of `tunesmithd`."""
    app()


@app.command()
def up(
    home: Home = None,
    host: Host = None,
    port: Port = None,
    grpc_port: GrpcPort = None,
    inference: Annotated[bool, typer.Option(help="Serve models as well.")] = True,
) -> None:
    """Runs the whole platform on this machine."""
    _serve(
        _settings(home=home, host=host, port=port, grpc_port=grpc_port),
        inference=InferenceMode.BESIDE if inference else InferenceMode.OFF,
    )


@app.command()
def server(home: Home = None, host: Host = None, port: Port = None, grpc_port: GrpcPort = None) -> None:
    """Runs the control plane only; TUNESMITH_GATEWAY_URL says where inference requests go."""
    settings = _settings(home=home, host=host, port=port, grpc_port=grpc_port)
    _serve(settings, inference=InferenceMode.ELSEWHERE)


@app.command()
def gateway(
    home: Home = None, port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway.")] = 8010
) -> None:
    """Runs a gateway only. On another machine, set TUNESMITH_CONTROL_PLANE and TUNESMITH_SERVICE_TOKEN."""
    environment = dict(os.environ)
    if "TUNESMITH_SERVICE_TOKEN" not in environment:
        settings = _settings(home=home)

        async def derive(core: Core) -> dict[str, str]:
            return gateway_environment(settings, service_token(core), port)

        environment = _with_core(settings, derive) | environment
    os.execve(  # noqa: S606 (our own interpreter and module)
        sys.executable, [sys.executable, "-m", "tunesmith_inference"], environment
    )


@app.command()
def migrate(home: Home = None) -> None:
    """Brings the database to the newest schema; `up` and `server` do it as well."""

    async def nothing_more(_core: Core) -> None:
        return None

    _with_core(_settings(home=home), nothing_more)
    typer.echo("The database is at the newest schema.")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    project: Project = DEFAULT_PROJECT,
    home: Home = None,
) -> None:
    """Makes a key and shows it, once."""
    new = _with_core(_settings(home=home), lambda core: ProjectsService(core).create_key(project, name))
    typer.echo(f"{new.id}  {new.key}")


@keys.command("list")
def list_keys(project: Project = DEFAULT_PROJECT, home: Home = None) -> None:
    """Shows the project's keys; their secrets are not kept."""
    for key in _with_core(_settings(home=home), lambda core: ProjectsService(core).list_keys(project)):
        state = f"revoked {_day(key.revoked_at)}" if key.revoked_at else "valid"
        typer.echo(f"{key.id}  {_day(key.created_at)}  {state}  {key.name}")


@keys.command("revoke")
def revoke_key(key_id: str, project: Project = DEFAULT_PROJECT, home: Home = None) -> None:
    """Ends a key at once."""
    _with_core(_settings(home=home), lambda core: ProjectsService(core).revoke_key(project, key_id))
    typer.echo(f"{key_id} is revoked.")


@models.command("list")
def list_models(home: Home = None) -> None:
    """Shows the base models and what became of their imports."""

    async def show(core: Core) -> None:
        async with core.database.read() as session:
            for row in await repository.list_base_models(session):
                typer.echo("  ".join(filter(None, (row.id, row.state, row.source, *row.aliases, row.error))))

    _with_core(_settings(home=home), show)


@models.command("import")
def import_model(name: str, home: Home = None) -> None:
    """Imports a base model of the catalogue now."""

    async def run(core: Core) -> str | None:
        importer = BaseModelImporter(core, RegistryService(core).changes, _progress)
        await importer.sync_catalogue()
        return await importer.import_named(name)

    try:
        reason = _with_core(_settings(home=home), run)
    except KeyError:
        reason = f"{name} is not in the catalogue of base models (TUNESMITH_BASE_MODELS)."
    if reason is not None:
        raise _failed(reason)


def _serve(settings: Settings, *, inference: InferenceMode) -> None:
    configure_logging()

    def ready() -> None:
        line = f"ready http://{settings.host}:{settings.port} grpc {settings.host}:{settings.grpc_port}"
        print(line, flush=True)  # noqa: T201 (the one line of standard output)

    try:
        asyncio.run(serve(settings, inference=inference, on_ready=ready, progress=_progress))
    except (StartError, CatalogueError, ValueError) as error:
        raise _failed(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise _failed(f"The server cannot start: {error}") from error


def _settings(**options: object) -> Settings:
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = "TUNESMITH_" + "_".join(str(part) for part in first["loc"]).upper()
        raise _failed(f"{name}: {first['msg']}.") from error


def _with_core(settings: Settings, work: Callable[[Core], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with open_core(settings) as core:
            return await work(core)

    try:
        return asyncio.run(run())
    except TunesmithError as error:
        raise _failed(error.message) from error
    except (CatalogueError, ValueError) as error:
        raise _failed(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise _failed(f"The database or the home cannot be used: {error}") from error


def _progress(line: str) -> None:
    typer.echo(f"tunesmithd: {line}", err=True)


def _failed(message: str) -> typer.Exit:
    typer.echo(f"tunesmithd: {message}", err=True)
    return typer.Exit(1)


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


if __name__ == "__main__":
    main()
