"""Owns the `tunesmithd` command: what an operator can type, and the sentences they read.

It must not know how anything is done; each command calls one part.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from sqlalchemy.exc import SQLAlchemyError

from tunesmith_server.admin_commands import add_admin_commands
from tunesmith_server.application import service_token
from tunesmith_server.backup import BackupError, back_up
from tunesmith_server.command_core import Home, failed, read_installation, read_settings, with_core
from tunesmith_server.config import Settings
from tunesmith_server.core import Core
from tunesmith_server.embedded import InferenceMode, gateway_environment
from tunesmith_server.registry import repository
from tunesmith_server.registry.base_models import BaseModelImporter
from tunesmith_server.registry.catalogue import CatalogueError
from tunesmith_server.registry.service import RegistryService
from tunesmith_server.serve import StartError, serve
from tunesmith_server.telemetry import configure_logging
from tunesmith_server.tracing import configure_tracing

Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="REST port.")]
GrpcPort = Annotated[int | None, typer.Option(min=1, max=65535, help="gRPC port.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # as in the SDK's command: whole options and choices in any terminal
    help="Runs and administers a Tunesmith installation.",
)
models = typer.Typer(no_args_is_help=True, help="Base models.")
app.add_typer(models, name="models")
add_admin_commands(app)


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
        read_settings(home=home, host=host, port=port, grpc_port=grpc_port),
        inference=InferenceMode.BESIDE if inference else InferenceMode.OFF,
    )


@app.command()
def server(home: Home = None, host: Host = None, port: Port = None, grpc_port: GrpcPort = None) -> None:
    """Runs the control plane only. TUNESMITH_GATEWAY_URL says where inference requests go."""
    settings = read_settings(home=home, host=host, port=port, grpc_port=grpc_port)
    _serve(settings, inference=InferenceMode.ELSEWHERE)


@app.command()
def gateway(
    home: Home = None, port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway.")] = 8010
) -> None:
    """Runs a gateway only. On another machine, set TUNESMITH_CONTROL_PLANE and TUNESMITH_SERVICE_TOKEN."""
    environment = dict(os.environ)
    if "TUNESMITH_SERVICE_TOKEN" not in environment:
        settings = read_settings(home=home)

        async def derive(core: Core) -> dict[str, str]:
            return gateway_environment(settings, service_token(core), port)

        environment = with_core(settings, derive) | environment
    os.execve(  # noqa: S606 (our own interpreter and module)
        sys.executable, [sys.executable, "-m", "tunesmith_inference"], environment
    )


@app.command()
def migrate(home: Home = None) -> None:
    """Brings the database to the newest schema. `up` and `server` do it as well."""

    async def nothing_more(_core: Core) -> None:
        return None

    with_core(read_settings(home=home), nothing_more)
    typer.echo("The database is at the newest schema.")


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder; `tunesmithd up --home` takes it as it is.")],
    home: Home = None,
) -> None:
    """Copies an installation. SQLite and a folder of objects only; it may go on serving meanwhile."""
    settings = read_installation(home)
    try:
        back_up(settings, folder)
    except BackupError as error:
        raise failed(str(error)) from error
    except (sqlite3.Error, OSError) as error:
        raise failed(f"The copy could not be made, and nothing of it is left: {error}") from error
    typer.echo(f"{folder} holds database, objects and keys.")
    if settings.secret_key is not None:
        typer.echo("It does not hold TUNESMITH_SECRET_KEY: keep that as well.")


@models.command("list")
def list_models(home: Home = None) -> None:
    """Shows the base models and what became of their imports."""

    async def show(core: Core) -> None:
        async with core.database.read() as session:
            for row in await repository.list_base_models(session):
                typer.echo("  ".join(filter(None, (row.id, row.state, row.source, *row.aliases, row.error))))

    with_core(read_installation(home), show)


@models.command("import")
def import_model(name: str, home: Home = None) -> None:
    """Imports a base model of the catalogue now."""

    async def run(core: Core) -> str | None:
        importer = BaseModelImporter(core, RegistryService(core).changes, _progress)
        await importer.sync_catalogue()
        return await importer.import_named(name)

    try:
        reason = with_core(read_settings(home=home), run)
    except KeyError:
        reason = f"{name} is not in the catalogue of base models (TUNESMITH_BASE_MODELS)."
    if reason is not None:
        raise failed(reason)


def _serve(settings: Settings, *, inference: InferenceMode) -> None:
    configure_logging()
    configure_tracing()

    def ready() -> None:
        line = f"ready http://{settings.host}:{settings.port} grpc {settings.host}:{settings.grpc_port}"
        print(line, flush=True)  # noqa: T201 (the one line of standard output)

    try:
        # Half of what a call costs is waiting for sockets, and this loop does that in C.
        uvloop.run(serve(settings, inference=inference, on_ready=ready, progress=_progress))
    except (StartError, CatalogueError, ValueError) as error:
        raise failed(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise failed(f"The server cannot start: {error}") from error


def _progress(line: str) -> None:
    typer.echo(f"tunesmithd: {line}", err=True)


if __name__ == "__main__":
    main()
