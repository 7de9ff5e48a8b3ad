"""Owns the `tunesmith` command: the SDK's nouns and verbs in a shell.
Must not know HTTP, nor how anything is drawn.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

try:
    import typer
    import typer.core

    from tunesmith._cli_output import (
        FollowDisplay,
        event_text,
        local_time,
        print_error,
        print_fine_tune,
        print_json,
        print_json_line,
        print_line,
        print_outcome,
        print_problems,
        print_table,
        printable,
    )
except ModuleNotFoundError as missing:
    # The SDK alone stays small; who installs it without the extra still has the command's entry point.
    raise SystemExit(f"The command line needs {missing.name}: pip install 'tunesmith[cli]'") from missing

from tunesmith._client import Tunesmith
from tunesmith._errors import APIStatusError, ConfigurationError, TunesmithError
from tunesmith._version import __version__
from tunesmith.types import FineTune

_INTERRUPTED = 130


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


app = typer.Typer(cls=ReportingGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
files_app = typer.Typer(no_args_is_help=True, help="Upload, list, read and delete files.")
fine_tunes_app = typer.Typer(no_args_is_help=True, help="Create and follow fine-tunes.")
models_app = typer.Typer(no_args_is_help=True, help="List and delete models.")
app.add_typer(files_app, name="files")
app.add_typer(fine_tunes_app, name="fine-tunes")
app.add_typer(models_app, name="models")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option(min=1, help="How many to show at most.")]
JobId = Annotated[str, typer.Argument(help="The id of the fine-tune, ftjob-….")]


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
    as_json: AsJson = False,
) -> None:
    """Upload a file; the server checks every line."""
    file = _client(ctx).files.create(file=path, purpose=purpose)
    print_json(file) if as_json else print_line(file.id)


@files_app.command("list")
def list_files(
    ctx: typer.Context,
    purpose: Annotated[str | None, typer.Option(help="Only files for this.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List files, newest first."""
    files = _client(ctx).files.list(purpose=purpose, limit=limit).data
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
    content = _client(ctx).files.content(file_id)
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
    client = _client(ctx)
    for file_id in file_ids:
        client.files.delete(file_id)
        print_line(f"Deleted {file_id}")


@fine_tunes_app.command("create")
def create_fine_tune(
    ctx: typer.Context,
    training_file: Annotated[str, typer.Argument(help="A local path, or the id of an uploaded file.")],
    model: Annotated[str, typer.Option(help="The base model.")],
    validation_file: Annotated[str | None, typer.Option(help="A local path or a file id.")] = None,
    suffix: Annotated[str | None, typer.Option(help="A word of yours for the model's name.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the run repeatable.")] = None,
    n_epochs: Annotated[int | None, typer.Option(help="Passes over the data, 1 to 50.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step, 1 to 256.")] = None,
    learning_rate_multiplier: Annotated[float | None, typer.Option(help="Factor on the learning rate.")] = None,
    method: Annotated[str, typer.Option(help="How to train.")] = "supervised",
    weights: Annotated[Literal["lora", "full"] | None, typer.Option(help="Train an adapter or every weight.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Size of the adapter.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Strength of the adapter.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until the job has finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a fine-tune; what is left out is chosen by the server."""
    client = _client(ctx)
    job = client.fine_tunes.create(
        model=model,
        training_file=training_file,
        validation_file=validation_file,
        suffix=suffix,
        seed=seed,
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=learning_rate_multiplier,
        method=method,
        weights=weights,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        metadata=_pairs(metadata),
    )
    _report_created(client, job, follow=follow, as_json=as_json)


@fine_tunes_app.command("list")
def list_fine_tunes(ctx: typer.Context, limit: Limit = 20, as_json: AsJson = False) -> None:
    """List fine-tunes, newest first."""
    jobs = _client(ctx).fine_tunes.list(limit=limit).data
    if as_json:
        print_json(jobs)
        return
    rows = [(j.id, j.status, j.model, j.fine_tuned_model, local_time(j.created_at)) for j in jobs]
    print_table(("ID", "STATUS", "BASE MODEL", "TUNED MODEL", "CREATED"), rows)


@fine_tunes_app.command("get")
def get_fine_tune(ctx: typer.Context, fine_tune_id: JobId, as_json: AsJson = False) -> None:
    """Show one fine-tune."""
    job = _client(ctx).fine_tunes.retrieve(fine_tune_id)
    print_json(job) if as_json else print_fine_tune(job)


@fine_tunes_app.command("cancel")
def cancel_fine_tune(ctx: typer.Context, fine_tune_id: JobId) -> None:
    """Stop a fine-tune; checkpoints that exist stay usable."""
    job = _client(ctx).fine_tunes.cancel(fine_tune_id)
    print_line(f"{job.id} is {job.status}.")


@fine_tunes_app.command("events")
def print_events(
    ctx: typer.Context,
    fine_tune_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what has happened so far, oldest first."""
    client = _client(ctx)
    if follow and not as_json:
        _exit_by(_followed(client, fine_tune_id))
    with _resumable(fine_tune_id):
        for event in client.fine_tunes.events(fine_tune_id, follow=follow):
            print_json_line(event) if as_json else print_line(event_text(event))


@fine_tunes_app.command("checkpoints")
def list_checkpoints(ctx: typer.Context, fine_tune_id: JobId, as_json: AsJson = False) -> None:
    """List the usable states of the model during training, newest first."""
    checkpoints = list(_client(ctx).fine_tunes.checkpoints(fine_tune_id))
    if as_json:
        print_json(checkpoints)
        return
    rows = [
        (c.step_number, c.fine_tuned_model_checkpoint, c.metrics.get("train_loss"), c.metrics.get("full_valid_loss"))
        for c in checkpoints
    ]
    print_table(("STEP", "MODEL", "TRAINING LOSS", "VALIDATION LOSS"), rows)


@models_app.command("list")
def list_models(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List base models and tuned models."""
    models = list(_client(ctx).models.list())
    if as_json:
        print_json(models)
        return
    print_table(("NAME", "OWNER", "CREATED"), [(m.id, m.owned_by, local_time(m.created)) for m in models])


@models_app.command("delete")
def delete_model(ctx: typer.Context, model: Annotated[str, typer.Argument(help="A tuned model, ft:….")]) -> None:
    """Delete a tuned model; it stops answering."""
    _client(ctx).models.delete(model)
    print_line(f"Deleted {model}")


@app.command("chat")
def chat(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A base model, a tuned model or a checkpoint.")],
    message: Annotated[str | None, typer.Argument(help="What to say; without it, a conversation starts.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
) -> None:
    """Talk to a model; without a message, one line after another until end of file (Ctrl-D)."""
    client = _client(ctx)
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


def _client(ctx: typer.Context) -> Tunesmith:
    path: Path | None = ctx.obj["api_key_file"]
    key = None if path is None else path.read_text("utf-8", errors="replace")
    client = Tunesmith(base_url=ctx.obj["base_url"], api_key=key)
    ctx.call_on_close(client.close)
    return client


def _pairs(given: list[str] | None) -> dict[str, str] | None:
    pairs = [pair.partition("=") for pair in given or []]
    for key, equals, _ in pairs:
        if not (key and equals):
            raise ConfigurationError(f"--metadata takes KEY=VALUE, not {key!r}.", code="invalid_metadata")
    return {key: value for key, _, value in pairs} or None


def _report_created(client: Tunesmith, job: FineTune, *, follow: bool, as_json: bool) -> None:
    if not as_json:
        print_line(f"Created {job.id}")
    if follow:
        job = _awaited(client, job.id) if as_json else _followed(client, job.id)
    if as_json:
        print_json(job)
    elif not follow:
        print_line(f"Follow it: {_follow_command(job.id)}")
    if follow:
        _exit_by(job)


def _awaited(client: Tunesmith, fine_tune_id: str) -> FineTune:
    with _resumable(fine_tune_id):
        return client.fine_tunes.wait(fine_tune_id, raise_on_failure=False)


def _followed(client: Tunesmith, fine_tune_id: str) -> FineTune:
    """Show the job until it has finished, then how it ended."""
    with _resumable(fine_tune_id), FollowDisplay() as display:
        for update in client.fine_tunes.follow(fine_tune_id):
            display.show(update.fine_tune, update.events)
    job = client.fine_tunes.retrieve(fine_tune_id)
    print_outcome(job)
    return job


def _exit_by(job: FineTune) -> NoReturn:
    raise typer.Exit(0 if job.status == "succeeded" else 1)


@contextlib.contextmanager
def _resumable(fine_tune_id: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print_error(f"{fine_tune_id} goes on without you. Follow it again: {_follow_command(fine_tune_id)}")
        raise typer.Exit(_INTERRUPTED) from None


def _follow_command(fine_tune_id: str) -> str:
    return f"tunesmith fine-tunes events {fine_tune_id} --follow"


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
