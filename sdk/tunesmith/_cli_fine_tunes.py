"""Owns `tunesmith fine-tunes`: create, follow, steer and read fine-tunes in a shell.
Must not know HTTP, nor how anything is drawn.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tunesmith._cli_context import MOST_AT_ONCE, AsJson, Limit, client_of, resumable
from tunesmith._cli_fine_tune_request import takes_request
from tunesmith._cli_output import (
    FollowDisplay,
    event_style,
    event_text,
    local_time,
    print_aside,
    print_estimate,
    print_fine_tune,
    print_json,
    print_json_line,
    print_line,
    print_outcome,
    print_table,
)
from tunesmith._client import Tunesmith
from tunesmith.resources.fine_tune_request import FineTuneRequest
from tunesmith.resources.fine_tunes import FineTuneUpdate
from tunesmith.types import Estimate, FineTune

_PAUSED = "paused"

JobId = Annotated[str, typer.Argument(help="The id of the fine-tune, ftjob-….")]

fine_tunes_app = typer.Typer(no_args_is_help=True, help="Create and follow fine-tunes.")


@fine_tunes_app.command("create")
@takes_request
def create_fine_tune(
    ctx: typer.Context,
    request: FineTuneRequest,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start it, or let it wait for `resume`.")] = True,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until it has ended or is paused.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a fine-tune; what is left out is chosen by the server."""
    client = client_of(ctx)
    if not start:
        request["auto_start"] = False
    _report_created(client, client.fine_tunes.create(**request), follow=follow, as_json=as_json)


@fine_tunes_app.command("list")
def list_fine_tunes(ctx: typer.Context, limit: Limit = 20, as_json: AsJson = False) -> None:
    """List fine-tunes, newest first."""
    pages = client_of(ctx).fine_tunes.list(limit=min(limit, MOST_AT_ONCE))
    jobs = list(itertools.islice(pages, limit))
    if as_json:
        print_json(jobs)
        return
    rows = [(j.id, j.status, j.model, j.fine_tuned_model, local_time(j.created_at)) for j in jobs]
    print_table(("ID", "STATUS", "MODEL", "TUNED MODEL", "CREATED"), rows)


@fine_tunes_app.command("get")
def get_fine_tune(ctx: typer.Context, fine_tune_id: JobId, as_json: AsJson = False) -> None:
    """Show one fine-tune."""
    job = client_of(ctx).fine_tunes.retrieve(fine_tune_id)
    print_json(job) if as_json else print_fine_tune(job)


@fine_tunes_app.command("cancel")
def cancel_fine_tune(ctx: typer.Context, fine_tune_id: JobId) -> None:
    """Stop a fine-tune; checkpoints that exist stay usable."""
    job = client_of(ctx).fine_tunes.cancel(fine_tune_id)
    print_line(f"{job.id} is {job.status}.")


@fine_tunes_app.command("pause")
def pause_fine_tune(ctx: typer.Context, fine_tune_id: JobId) -> None:
    """Have a fine-tune save its work and wait."""
    job = client_of(ctx).fine_tunes.pause(fine_tune_id)
    print_line(f"{job.id} is {job.status}.")


@fine_tunes_app.command("resume")
def resume_fine_tune(ctx: typer.Context, fine_tune_id: JobId) -> None:
    """Let a paused fine-tune go on."""
    job = client_of(ctx).fine_tunes.resume(fine_tune_id)
    print_line(f"{job.id} is {job.status}.")


@fine_tunes_app.command("estimate")
@takes_request
def estimate_fine_tune(ctx: typer.Context, request: FineTuneRequest, as_json: AsJson = False) -> None:
    """Tell what a fine-tune would take, without starting it."""
    client = client_of(ctx)
    # The waiting is done here: who interrupts it has to know the id by then.
    _report_estimate(client, client.fine_tunes.estimate(wait_seconds=0, **request), as_json=as_json)


@fine_tunes_app.command("get-estimate")
def get_estimate(
    ctx: typer.Context,
    estimate_id: Annotated[str, typer.Argument(help="The id of the estimate, ftest-….")],
    as_json: AsJson = False,
) -> None:
    """Show an estimate once it is there; it is kept for a day."""
    client = client_of(ctx)
    _report_estimate(client, client.fine_tunes.retrieve_estimate(estimate_id), as_json=as_json)


@fine_tunes_app.command("logs")
def print_logs(
    ctx: typer.Context,
    fine_tune_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Which run; the newest by default.")] = None,
    tail_bytes: Annotated[int | None, typer.Option(min=1, help="How much of the end.")] = None,
) -> None:
    """Show the end of what a run has written."""
    text = client_of(ctx).fine_tunes.logs(fine_tune_id, attempt=attempt, tail_bytes=tail_bytes)
    if not text:
        print_aside("This run has written nothing, or nothing of it is kept.")
    for line in text.splitlines():
        print_line(line)


@fine_tunes_app.command("report")
def write_report(
    ctx: typer.Context,
    fine_tune_id: JobId,
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="Where the page is written.")],
) -> None:
    """Write a fine-tune's report as one HTML page."""
    output.write_text(client_of(ctx).fine_tunes.report(fine_tune_id), encoding="utf-8")
    print_line(f"Wrote {output}.")


@fine_tunes_app.command("events")
def print_events(
    ctx: typer.Context,
    fine_tune_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has finished or is paused.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what has happened so far, oldest first."""
    client = client_of(ctx)
    if follow and not as_json:
        _exit_by(_followed(client, fine_tune_id))
    if follow:
        _stream_json(client, fine_tune_id)
        return
    for event in client.fine_tunes.events(fine_tune_id):
        print_json_line(event) if as_json else print_line(event_text(event), style=event_style(event))


@fine_tunes_app.command("checkpoints")
def list_checkpoints(ctx: typer.Context, fine_tune_id: JobId, as_json: AsJson = False) -> None:
    """List usable states of the model, newest first."""
    checkpoints = list(client_of(ctx).fine_tunes.checkpoints(fine_tune_id))
    if as_json:
        print_json(checkpoints)
        return
    rows = [
        (c.step_number, c.fine_tuned_model_checkpoint, c.metrics.get("train_loss"), c.metrics.get("full_valid_loss"))
        for c in checkpoints
    ]
    print_table(("STEP", "MODEL", "TRAINING LOSS", "VALIDATION LOSS"), rows)


def _report_estimate(client: Tunesmith, estimate: Estimate, *, as_json: bool) -> None:
    if estimate.status == "validating_files":
        print_aside(f"{estimate.id} is validating the files.")
        with resumable(estimate.id, f"Look at it again: tunesmith fine-tunes get-estimate {estimate.id}"):
            estimate = client.fine_tunes.wait_for_estimate(estimate.id)
    print_json(estimate) if as_json else print_estimate(estimate)
    if estimate.status == "failed":
        raise typer.Exit(1)


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
    """Return the job once it has finished or is paused."""
    with _resumable(fine_tune_id):
        for update in _updates(client, fine_tune_id):
            job = update.fine_tune
    _tell_of_trouble(job)
    return job


def _followed(client: Tunesmith, fine_tune_id: str) -> FineTune:
    """Show the job until it has finished or is paused, then how it ended."""
    with _resumable(fine_tune_id), FollowDisplay() as display:
        for update in _updates(client, fine_tune_id):
            job = update.fine_tune
            display.show(job, update.events)
    print_outcome(job)
    return job


def _stream_json(client: Tunesmith, fine_tune_id: str) -> None:
    """Print each event as it happens until the job has finished or is paused."""
    with _resumable(fine_tune_id):
        for update in _updates(client, fine_tune_id):
            job = update.fine_tune
            for event in update.events:
                print_json_line(event)
    _tell_of_trouble(job)


def _updates(client: Tunesmith, fine_tune_id: str) -> Iterator[FineTuneUpdate]:
    """Follow the job; a paused one may wait for ever, so it ends the following, too."""
    for update in client.fine_tunes.follow(fine_tune_id):
        yield update
        if update.fine_tune.status == _PAUSED:
            return


def _tell_of_trouble(job: FineTune) -> None:
    if job.status != "succeeded":
        print_outcome(job)


def _exit_by(job: FineTune) -> NoReturn:
    raise typer.Exit(0 if job.status == "succeeded" else 1)


def _resumable(fine_tune_id: str) -> contextlib.AbstractContextManager[None]:
    return resumable(fine_tune_id, f"Follow it again: {_follow_command(fine_tune_id)}")


def _follow_command(fine_tune_id: str) -> str:
    return f"tunesmith fine-tunes events {fine_tune_id} --follow"
