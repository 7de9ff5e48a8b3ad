"""Owns the verbs of `tunesmith models`.
Must not know HTTP, nor how anything is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith._cli_context import AsJson, client_of, resumable
from tunesmith._cli_output import (
    local_time,
    print_aside,
    print_json,
    print_line,
    print_model,
    print_table,
    upload_display,
)

models_app = typer.Typer(no_args_is_help=True, help="List, download, upload and delete models.")


@models_app.command("list")
def list_models(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List base models and tuned models."""
    models = list(client_of(ctx).models.list())
    if as_json:
        print_json(models)
        return
    print_table(("NAME", "OWNER", "CREATED"), [(m.id, m.owned_by, local_time(m.created)) for m in models])


@models_app.command("get")
def get_model(
    ctx: typer.Context, model: Annotated[str, typer.Argument(help="The model's name.")], as_json: AsJson = False
) -> None:
    """Show one model: whether it is ready, and why not."""
    found = client_of(ctx).models.retrieve(model)
    print_json(found) if as_json else print_model(found)


@models_app.command("download")
def download_model(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A tuned model or a checkpoint, ft:….")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", file_okay=False, help="The folder; by default named as the model, merged with -merged."
        ),
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="The whole model, with the adapter added to it.")] = False,
) -> None:
    """Write a tuned model's files into a folder."""
    named = model.replace(":", "-").replace("/", "-")
    folder = output or Path(f"{named}-merged" if merged else named)
    for path in client_of(ctx).models.download(model, folder, merged=merged):
        print_line(str(path))


@models_app.command("upload")
def upload_model(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="PEFT's LoRA adapter, or a whole model.", file_okay=False)],
    base: Annotated[str, typer.Option(help="The base model that it was tuned from.")],
    suffix: Annotated[str | None, typer.Option(help="A word of yours for the model's name.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until it is ready.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a model that was tuned elsewhere."""
    models = client_of(ctx).models
    with upload_display(folder.name) as progress:
        model = models.upload(folder, base=base, suffix=suffix, progress=progress)
    # At once: who does not wait for the end needs the name to look again.
    if not as_json:
        print_line(model.id)
    elif follow:
        print_aside(model.id)
    if follow:
        with resumable(model.id, f"Look at it again: tunesmith models get {model.id}"):
            model = models.wait(model.id)
    if as_json:
        print_json(model)


@models_app.command("delete")
def delete_model(ctx: typer.Context, model: Annotated[str, typer.Argument(help="A tuned model, ft:….")]) -> None:
    """Delete a tuned model; it stops answering."""
    client_of(ctx).models.delete(model)
    print_line(f"Deleted {model}")
