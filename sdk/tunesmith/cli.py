"""Owns the `tunesmith` command: the SDK's nouns and verbs in a shell, all but those with a module of their own.
Must not know HTTP, nor how anything is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    import typer.core

    from tunesmith._cli_captures import captures_app
    from tunesmith._cli_context import AsJson, Limit, client_of, finite
    from tunesmith._cli_deployments import deployments_app
    from tunesmith._cli_fine_tunes import fine_tunes_app
    from tunesmith._cli_models import models_app
    from tunesmith._cli_output import (
        local_time,
        print_error,
        print_json,
        print_line,
        print_problems,
        print_table,
        printable,
        upload_display,
    )
except ModuleNotFoundError as missing:
    # The SDK alone stays small; who installs it without the extra still has the command's entry point.
    raise SystemExit(f"The command line needs {missing.name}: pip install 'tunesmith[cli]'") from missing

from tunesmith._client import Tunesmith
from tunesmith._errors import APIStatusError, TunesmithError
from tunesmith._version import __version__


class ReportingGroup(typer.core.TyperGroup):
    """Turns the SDK's errors, unreadable paths and impossible values into one red sentence and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except TunesmithError as error:
            print_error(error.message, error.code)
            print_problems(error.problems if isinstance(error, APIStatusError) else ())
        except OSError as error:
            print_error(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        except ValueError as error:
            print_error(str(error))
        raise typer.Exit(1)


app = typer.Typer(
    cls=ReportingGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # tables of help cut long options and choices off in a terminal of 80 columns
)
files_app = typer.Typer(no_args_is_help=True, help="Upload, list, read and delete files.")
app.add_typer(files_app, name="files")
app.add_typer(fine_tunes_app, name="fine-tunes")
app.add_typer(models_app, name="models")
app.add_typer(deployments_app, name="deployments")
app.add_typer(captures_app, name="captures")


def main() -> None:
    """Run the command line."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        print(f"tunesmith {__version__}")
        raise typer.Exit


@app.callback()
def connect(
    ctx: typer.Context,
    base_url: Annotated[
        str | None, typer.Option(envvar="TUNESMITH_BASE_URL", help="The server; default http://127.0.0.1:8000.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TUNESMITH_API_KEY_FILE", help="A file that holds the API key, instead of TUNESMITH_API_KEY."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune models on your own machines and talk to them."""
    ctx.obj = {"base_url": base_url, "api_key_file": api_key_file}


@files_app.command("upload")
def upload_file(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="The file to upload.")],
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "fine-tune",
    expires_after: Annotated[int | None, typer.Option(help="Seconds after which the server deletes it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file; the server checks every line."""
    with upload_display(path.name) as progress:
        file = client_of(ctx).files.create(file=path, purpose=purpose, expires_after=expires_after, progress=progress)
    print_json(file) if as_json else print_line(file.id)


@files_app.command("list")
def list_files(
    ctx: typer.Context,
    purpose: Annotated[str | None, typer.Option(help="Only files for this.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List files, newest first."""
    files = client_of(ctx).files.list(purpose=purpose, limit=limit).data
    if as_json:
        print_json(files)
        return
    rows = [(f.id, f.filename, f.purpose, f.bytes, f.status, local_time(f.created_at)) for f in files]
    print_table(("ID", "NAME", "PURPOSE", "BYTES", "STATUS", "CREATED"), rows)


@files_app.command("content")
def print_content(
    ctx: typer.Context,
    file_id: Annotated[str, typer.Argument(help="The id of the file, file-….")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here, not to standard output.")] = None,
) -> None:
    """Print the bytes of a file."""
    content = client_of(ctx).files.content(file_id)
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        output.write_bytes(content)


@files_app.command("delete")
def delete_files(
    ctx: typer.Context, file_ids: Annotated[list[str], typer.Argument(help="The ids of the files, file-….")]
) -> None:
    """Delete files."""
    client = client_of(ctx)
    for file_id in file_ids:
        client.files.delete(file_id)
        print_line(f"Deleted {file_id}")


@app.command("chat")
def chat(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A base model, a tuned model, a checkpoint or a deployment.")],
    message: Annotated[str | None, typer.Argument(help="What to say; without it, a conversation starts.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    temperature: Annotated[
        float | None, typer.Option(callback=finite, help="0 always takes the likeliest token.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
) -> None:
    """Talk to a model. Without a message, line after line until end of file (Ctrl-D)."""
    client = client_of(ctx)
    given = {"temperature": temperature, "max_tokens": max_tokens}
    sampling = {name: value for name, value in given.items() if value is not None}
    messages: list[dict[str, object]] = [{"role": "system", "content": system}] if system else []
    while True:
        said = message if message is not None else _asked()
        if said is None:
            return
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": _stream_answer(client, model, messages, sampling)})
        if message is not None:
            return


def _asked() -> str | None:
    """Return what the person says next, None at the end."""
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None
        if said.strip():
            return said


def _stream_answer(
    client: Tunesmith, model: str, messages: Sequence[dict[str, object]], sampling: dict[str, float]
) -> str:
    """Print the answer as it comes and return it."""
    pieces: list[str] = []
    with client.chat.completions.create(model=model, messages=messages, stream=True, **sampling) as chunks:
        for chunk in chunks:
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
                print(printable(pieces[-1]), end="", flush=True)
    print()
    return "".join(pieces)
