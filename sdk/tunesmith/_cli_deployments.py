"""Owns the verbs of `tunesmith deployments`.
Must not know HTTP, nor how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from tunesmith._cli_context import MOST_AT_ONCE, AsJson, Limit, client_of
from tunesmith._cli_output import local_time, print_json, print_line, print_table
from tunesmith._client import Tunesmith
from tunesmith.types import Deployment, DeploymentTarget, DeploymentVersion

deployments_app = typer.Typer(no_args_is_help=True, help="Names that stand for models and move between them.")

Name = Annotated[str, typer.Argument(help="The deployment's name.")]
Models = Annotated[list[str], typer.Argument(help="A model, or several as MODEL=WEIGHT.")]


@deployments_app.command("create")
def create(
    ctx: typer.Context,
    name: Name,
    targets: Models,
    pinned: Annotated[bool, typer.Option("--pinned", help="Keep the models loaded.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a name for one or several models."""
    _show(client_of(ctx).deployments.create(name, _weights(targets), pinned=pinned), as_json)


@deployments_app.command("list")
def list_all(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List deployments by name."""
    found = client_of(ctx).deployments.list()
    if as_json:
        print_json(found)
        return
    rows = [(each.name, each.version, "yes" if each.pinned else "no", _told(each.targets)) for each in found]
    print_table(("NAME", "VERSION", "PINNED", "MODELS"), rows)


@deployments_app.command("get")
def get(ctx: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show a deployment and how far gateways are with its models."""
    _show(client_of(ctx).deployments.retrieve(name), as_json)


@deployments_app.command("update")
def update(
    ctx: typer.Context,
    name: Name,
    targets: Annotated[list[str] | None, typer.Argument(help="A model, or several as MODEL=WEIGHT.")] = None,
    pinned: Annotated[bool | None, typer.Option("--pinned/--unpinned", help="Keep the models loaded.")] = None,
    as_json: AsJson = False,
) -> None:
    """Move a name to other models. Gateways go over when those are ready."""
    weights = _weights(targets) if targets else None
    _show(client_of(ctx).deployments.update(name, weights, pinned=pinned), as_json)


@deployments_app.command("rollback")
def roll_back(
    ctx: typer.Context,
    name: Name,
    version: Annotated[int | None, typer.Option(help="Which version; by default the one before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Give a name the models of an earlier version."""
    _show(client_of(ctx).deployments.roll_back(name, version), as_json)


@deployments_app.command("versions")
def versions(ctx: typer.Context, name: Name, limit: Limit = 20, as_json: AsJson = False) -> None:
    """List what a name stood for, newest first."""
    found = _newest(client_of(ctx), name, limit)
    if as_json:
        print_json(found)
        return
    rows = [(each.version, local_time(each.created_at), _told(each.targets)) for each in found]
    print_table(("VERSION", "SINCE", "MODELS"), rows)


@deployments_app.command("delete")
def delete(ctx: typer.Context, name: Name) -> None:
    """End a name; its models stay."""
    client_of(ctx).deployments.delete(name)
    print_line(f"Deleted {name}")


def _newest(client: Tunesmith, name: str, limit: int) -> Sequence[DeploymentVersion]:
    found: list[DeploymentVersion] = []
    while len(found) < limit:
        asked = min(limit - len(found), MOST_AT_ONCE)
        page = client.deployments.versions(name, limit=asked, after=found[-1].version if found else None)
        found += page
        if len(page) < asked:
            break
    return found


def _show(deployment: Deployment, as_json: bool) -> None:
    if as_json:
        print_json(deployment)
        return
    print_line(f"{deployment.name}, version {deployment.version}{', pinned' if deployment.pinned else ''}")
    print_table(("MODEL", "WEIGHT", "STATE"), [(each.model, each.weight, each.state) for each in deployment.targets])


def _told(targets: Sequence[DeploymentTarget]) -> str:
    return " ".join(f"{target.model}={target.weight}" for target in targets)


def _weights(targets: Sequence[str]) -> dict[str, int]:
    """`MODEL` or `MODEL=WEIGHT` each; raises ValueError."""
    weights: dict[str, int] = {}
    for target in targets:
        model, given, weight = target.rpartition("=")
        if given and not weight.isdecimal():
            raise ValueError(f"A weight is a whole number, as in {model}=1.")
        named = model if given else target
        if named in weights:
            raise ValueError(f"{named} is named twice.")
        weights[named] = int(weight) if given else 1
    return weights
