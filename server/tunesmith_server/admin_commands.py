"""Owns the commands about projects, keys, usage and the audit log: what an operator types and reads.

It must not know how anything is done; each command calls one service. What is changed here counts in a server that
runs after a few seconds.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from tunesmith_server.audit.repository import AuditQuery
from tunesmith_server.audit.service import AuditLog
from tunesmith_server.command_core import Home, failed, read_installation, with_core
from tunesmith_server.core import Core
from tunesmith_server.projects.administration import Administration, Project
from tunesmith_server.projects.key_lookup import KeyLookup
from tunesmith_server.projects.quotas import NAMES
from tunesmith_server.projects.scopes import PROJECT, SCOPES
from tunesmith_server.projects.service import DEFAULT_OVERLAP_SECONDS, DEFAULT_PROJECT, KeyInfo, ProjectsService
from tunesmith_server.projects.usage import UsageQuery, UsageService
from tunesmith_server.projects.usage_repository import UsageFilter

_DAY = 86400
_HOUR = 3600
_MAX_LISTED = 100

ProjectOption = Annotated[str, typer.Option("--project", help="Project of the key.")]

keys = typer.Typer(no_args_is_help=True, help="API keys.")
projects = typer.Typer(no_args_is_help=True, help="Projects and their quotas.")


def add_admin_commands(app: typer.Typer) -> None:
    """Puts every command of this module below `app`."""
    app.add_typer(keys, name="keys")
    app.add_typer(projects, name="projects")
    app.command("audit")(show_audit)
    app.command("usage")(show_usage)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    project: ProjectOption = DEFAULT_PROJECT,
    scopes: Annotated[str, typer.Option(help=f"Separated by commas, of: {', '.join(SCOPES)}.")] = PROJECT,
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=3650, help="Absent: never.")] = None,
    capture: Annotated[bool, typer.Option("--capture", help="Keep what it asks and is answered.")] = False,
    home: Home = None,
) -> None:
    """Makes a key and shows it, once."""
    chosen = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    seconds = None if expires_in_days is None else expires_in_days * _DAY
    new = with_core(
        read_installation(home),
        lambda core: ProjectsService(core).create_key(project, name, chosen, seconds, capture=capture),
    )
    typer.echo(f"{new.id}  {new.key}")


@keys.command("list")
def list_keys(project: ProjectOption = DEFAULT_PROJECT, home: Home = None) -> None:
    """Shows the project's keys; their secrets are not kept."""
    for key in with_core(read_installation(home), lambda core: ProjectsService(core).list_keys(project)):
        used = f"used {_minute(key.last_used_at)}" if key.last_used_at else "never used"
        kept = "captured" if key.capture else "not captured"
        parts = (key.id, key.redacted, _day(key.created_at), _state(key), used, ",".join(key.scopes), kept, key.name)
        typer.echo("  ".join(parts))


@keys.command("capture")
def capture_key(
    key_id: str,
    on: Annotated[bool, typer.Option("--on/--off", help="From now on; what was kept stays.")] = True,
    project: ProjectOption = DEFAULT_PROJECT,
    home: Home = None,
) -> None:
    """Has what a key asks and is answered be kept, or not any more."""
    with_core(read_installation(home), lambda core: ProjectsService(core).update_key(project, key_id, capture=on))
    typer.echo(f"What {key_id} asks and is answered is {'kept' if on else 'not kept'} from now on.")


@keys.command("rotate")
def rotate_key(
    key_id: str,
    project: ProjectOption = DEFAULT_PROJECT,
    overlap_hours: Annotated[
        int, typer.Option(min=0, max=720, help="How long the old key still works.")
    ] = DEFAULT_OVERLAP_SECONDS // _HOUR,
    home: Home = None,
) -> None:
    """Makes a key like the old one. It is shown once; the old one ends after the overlap."""
    new = with_core(
        read_installation(home),
        lambda core: ProjectsService(core).rotate_key(project, key_id, overlap_hours * _HOUR),
    )
    typer.echo(f"{new.id}  {new.key}")


@keys.command("revoke")
def revoke_key(key_id: str, project: ProjectOption = DEFAULT_PROJECT, home: Home = None) -> None:
    """Ends a key."""
    with_core(read_installation(home), lambda core: ProjectsService(core).revoke_key(project, key_id))
    typer.echo(f"{key_id} is revoked.")


@projects.command("create")
def create_project(
    name: str,
    project_id: Annotated[str | None, typer.Option("--id", help="Part of model names; absent: one is made.")] = None,
    home: Home = None,
) -> None:
    """Makes a project."""
    project = with_core(read_installation(home), lambda core: _administration(core).create(name, project_id))
    typer.echo(project.id)


@projects.command("list")
def list_projects(home: Home = None) -> None:
    """Shows every project, with the quotas that are its own."""

    async def every(core: Core) -> list[Project]:
        found: list[Project] = []
        while True:
            after = found[-1].id if found else None
            page = await _administration(core).list(limit=_MAX_LISTED, after=after, archived_too=True)
            found += page.projects
            if not page.has_more:
                return found

    for project in with_core(read_installation(home), every):
        state = "active" if project.archived_at is None else f"archived {_day(project.archived_at)}"
        quotas = " ".join(f"{name}={value}" for name, value in sorted(project.own_quotas.items()))
        typer.echo("  ".join(filter(None, (project.id, _day(project.created_at), state, project.name, quotas))))


@projects.command("archive")
def archive_project(project_id: str, home: Home = None) -> None:
    """Ends the keys of a project; its data stay."""
    with_core(read_installation(home), lambda core: _administration(core).archive(project_id))
    typer.echo(f"{project_id} is archived.")


@projects.command("quota")
def set_quota(
    project_id: str,
    changes: Annotated[
        list[str] | None, typer.Argument(help=f"NAME=NUMBER or NAME=default, of: {', '.join(NAMES)}.")
    ] = None,
    home: Home = None,
) -> None:
    """Sets quotas of a project and shows those that hold."""
    wanted = dict(_quota(change) for change in changes or [])
    project = with_core(read_installation(home), lambda core: _administration(core).update(project_id, quotas=wanted))
    for name in NAMES:
        value = getattr(project.quotas, name)
        own = "" if name in project.own_quotas else "  (default)"
        typer.echo(f"{name}  {'no limit' if value is None else value}{own}")


def show_audit(
    limit: Annotated[int, typer.Option(min=1, max=_MAX_LISTED, help="Lines, the newest first.")] = 20,
    project: Annotated[str | None, typer.Option(help="Of this project's keys only.")] = None,
    home: Home = None,
) -> None:
    """Shows who did what."""
    query = AuditQuery(limit, project_ids=(project,) if project else ())
    page = with_core(read_installation(home), lambda core: AuditLog(core).list(query))
    for line in page.lines:
        parts = (_minute(line.created_at), line.project_id, line.key_id, line.action, line.target_id, line.outcome)
        typer.echo("  ".join(part or "-" for part in parts))


def show_usage(
    days: Annotated[int, typer.Option(min=1, max=31, help="Today included.")] = 7,
    project: Annotated[str | None, typer.Option(help="Of this project only.")] = None,
    home: Home = None,
) -> None:
    """Shows tokens and device-seconds per day, project, key and model."""
    query = UsageQuery(
        int(time.time()) - (days - 1) * _DAY,
        limit=days,
        group_by=("project_id", "api_key_id", "model", "kind"),
        which=UsageFilter(project_ids=(project,) if project else ()),
    )
    for bucket in with_core(read_installation(home), lambda core: UsageService(core).read(query)).buckets:
        for one in bucket.sums:
            group = "  ".join(one.group[name] or "-" for name in query.group_by)
            sums = f"{one.requests} requests  {one.input_tokens} in  {one.output_tokens} out"
            typer.echo(f"{_day(bucket.start_time)}  {group}  {sums}  {one.device_seconds:.0f} device-seconds")


def _administration(core: Core) -> Administration:
    return Administration(core, KeyLookup(core))


def _quota(change: str) -> tuple[str, int | float | None]:
    name, equals, text = change.partition("=")
    if equals and text == "default":
        return name, None
    try:
        return name, float(text) if name == "share" else int(text)
    except ValueError:
        raise failed(f"{change!r} is not NAME=NUMBER or NAME=default.") from None


def _state(key: KeyInfo) -> str:
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    return "valid" if key.expires_at is None else f"until {_minute(key.expires_at)}"


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _minute(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%MZ")
