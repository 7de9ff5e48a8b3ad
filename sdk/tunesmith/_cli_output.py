"""Owns what the command line prints: tables, errors, and the live progress of a fine-tune.
Must not know commands, nor send requests.
"""

from __future__ import annotations

import contextlib
import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TaskID, TextColumn, TransferSpeedColumn
from rich.progress import Progress as LiveProgress
from rich.text import Text

from tunesmith._errors import FineTuneFailedError, Problem
from tunesmith.types import Estimate, Evaluation, FineTune, FineTuneEvent, Model, Progress, Serving


def print_line(text: str, *, style: str = "") -> None:
    """Print one line as it is, without rich's markup, wrapping or highlighting."""
    _standard().print(Text(printable(text), style=style), soft_wrap=True)


def print_error(message: str, code: str | None = None) -> None:
    """Print one red sentence with its code to standard error."""
    _print_to_stderr(f"{message} (code: {code})" if code else message, style="red")


def print_aside(text: str) -> None:
    """Print one line to standard error: what a person should know and a program must not read as the answer."""
    _print_to_stderr(text)


def print_problems(problems: Sequence[Problem]) -> None:
    """Print what is wrong to standard error, a line each; a single problem stands in the error's sentence already."""
    for problem in problems if len(problems) > 1 else ():
        _print_to_stderr(f"  {problem.message} (code: {problem.code})")


def print_json(shapes: BaseModel | Sequence[BaseModel]) -> None:
    """Print one object, or a list of them, as indented JSON."""
    plain = shapes.model_dump() if isinstance(shapes, BaseModel) else [shape.model_dump() for shape in shapes]
    _write_raw(json.dumps(plain, indent=2))


def print_json_line(shape: BaseModel) -> None:
    """Print one object as one line of JSON."""
    _write_raw(json.dumps(shape.model_dump()))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns, whole: an id that is cut or folded cannot be copied."""
    lines = [[printable("" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    if any(headings):
        print_line(_aligned(headings, widths), style="bold")
    for line in lines:
        print_line(_aligned(line, widths))


def print_fine_tune(job: FineTune) -> None:
    """Print what a person wants to know about a job."""
    rows: list[tuple[str, object]] = [
        ("id", job.id),
        ("status", job.status),
        ("model", job.model),
        ("tuned model", job.fine_tuned_model),
        ("created", local_time(job.created_at)),
        ("finished", local_time(job.finished_at)),
        ("training file", job.training_file),
        ("validation file", job.validation_file),
        ("result files", ", ".join(job.result_files) or None),
    ]
    for settings in (job.training, job.hyperparameters):
        if settings is not None:
            rows += [(name.replace("_", " "), value) for name, value in settings.model_dump().items()]
    if job.progress is not None and not job.finished:
        rows.append(("progress", _progress_text(job)))
    if job.error is not None:
        rows.append(("error", f"{job.error.message} (code: {job.error.code})"))
    if job.evaluation is not None:
        rows.append(("evaluation", _evaluation_text(job.evaluation)))
    print_table(("", ""), [row for row in rows if row[1] is not None])


def print_estimate(estimate: Estimate) -> None:
    """Print what a person wants to know about an estimate; what is wrong goes to standard error."""
    memory, queue, cost = estimate.memory, estimate.queue, estimate.cost
    rows: list[tuple[str, object]] = [
        ("id", estimate.id),
        ("status", estimate.status),
        ("model", estimate.model),
        ("rows", estimate.rows),
        ("tokens of one pass", estimate.tokens),
        ("trained tokens", estimate.trained_tokens),
        ("steps", estimate.steps),
        ("time", None if estimate.seconds is None else timedelta(seconds=round(estimate.seconds))),
        ("place in the queue", queue.position if queue else None),
        ("expected start", local_time(queue.expected_start) if queue else None),
        ("memory needed", memory.needed_bytes if memory else None),
        ("memory available", memory.available_bytes if memory else None),
        ("fits", None if memory is None or memory.fits is None else "yes" if memory.fits else "no"),
        ("cost", f"{cost.amount:g} {cost.currency}" if cost else None),
        ("rejected rows", estimate.rejects_file),
    ]
    for settings in (estimate.training, estimate.hyperparameters):
        if settings is not None:
            rows += [(name.replace("_", " "), value) for name, value in settings.model_dump().items()]
    print_table(("", ""), [row for row in rows if row[1] is not None])
    for finding in estimate.findings:
        print_line(f"{finding.get('severity', 'warning')}: {finding.get('message', '')}")
    if estimate.error is not None:
        print_error(estimate.error.message, estimate.error.code)


def print_model(model: Model) -> None:
    """Print what a person wants to know about a model."""
    rows: list[tuple[str, object]] = [
        ("name", model.id),
        ("status", model.status),
        ("owner", model.owned_by),
        ("created", local_time(model.created)),
    ]
    if model.error is not None:
        rows.append(("error", f"{model.error.message} (code: {model.error.code})"))
    if model.serving is not None:
        rows += _serving_rows(model.serving)
    print_table(("", ""), [row for row in rows if row[1] is not None])


def print_outcome(job: FineTune) -> None:
    """Print how a job ended or that it is paused, and what to do next; all but success goes to standard error."""
    if job.status == "failed":
        failure = FineTuneFailedError(job)
        print_error(failure.message, failure.code)
    elif job.status == "cancelled":
        print_error(f"{job.id} was cancelled.")
    elif job.status == "paused":
        print_error(f"{job.id} is paused. Let it go on: tunesmith fine-tunes resume {job.id}")
    else:
        if job.evaluation is not None:
            print_line(_evaluation_text(job.evaluation))
        print_line(f"{job.id} succeeded: {job.fine_tuned_model}", style="green")
        print_line(f"Talk to it: tunesmith chat {job.fine_tuned_model}")


def printable(text: str) -> str:
    """Return the text without control characters: what a server or a model says must not steer the terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


def local_time(seconds: int | None) -> str | None:
    """Return a Unix time as local date and time."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


@contextlib.contextmanager
def upload_display(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much of a file has been sent, on a terminal, while the block runs."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with LiveProgress(*columns, console=console, transient=True, disable=not console.is_terminal) as live:
        task = live.add_task(printable(name), total=None)
        yield lambda sent, size: live.update(task, completed=sent, total=size)


class FollowDisplay:
    """Shows a running fine-tune: one live line on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        console = _standard()
        self._live: LiveProgress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._live = LiveProgress(*columns, TextColumn("{task.fields[numbers]}"), console=console, transient=True)
        self._task: TaskID | None = None
        self._numbers = ""
        self._past_is_shown = False

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, job: FineTune, events: Sequence[FineTuneEvent]) -> None:
        """Show these new events and where the job is now; the first ones are the job's past."""
        # The time that is left now belongs to the newest step alone, and to none of the past.
        steps = [event for event in events if event.type == "metrics"] if self._past_is_shown else []
        self._past_is_shown = True
        for event in events:
            if event.type == "metrics" and event.data:
                self._numbers = _metrics_text(event)
                if self._live is not None:
                    continue
            self._print_event(event, _time_left(job) if event in steps[-1:] else "")
        if self._live is not None and not job.finished:
            self._draw(self._live, job)

    def _print_event(self, event: FineTuneEvent, time_left: str) -> None:
        line = " · ".join(filter(None, (event_text(event), time_left)))
        style = event_style(event)
        if self._live is None:
            print_line(line, style=style)
        else:
            self._live.console.print(Text(printable(line), style=style))

    def _draw(self, live: LiveProgress, job: FineTune) -> None:
        progress = job.progress or Progress()
        if self._task is None:
            self._task = live.add_task("", total=None, numbers="")
        live.update(
            self._task,
            description=printable(progress.phase or job.status),
            completed=progress.step or 0,
            total=progress.total_steps,
            numbers=" · ".join(filter(None, (self._numbers, _time_left(job)))),
        )


def event_text(event: FineTuneEvent) -> str:
    """Return an event as one line: local time, then its numbers or its message."""
    if event.type == "metrics" and event.data and "step" in event.data:
        text = f"step {event.data['step']}/{event.data.get('total_steps', '?')} · {_metrics_text(event)}"
    else:
        text = event.message
    return f"{(local_time(event.created_at) or '')[11:]}  {text}"


def event_style(event: FineTuneEvent) -> str:
    """Return how an event is drawn, by its level."""
    return {"error": "red", "warn": "yellow"}.get(event.level, "")


def _metrics_text(event: FineTuneEvent) -> str:
    data = event.data or {}
    losses = (("loss", "train_loss"), ("validation loss", "valid_loss"), ("full validation loss", "full_valid_loss"))
    parts = [f"{label} {data[name]:.4f}" for label, name in losses if isinstance(data.get(name), int | float)]
    tokens, seconds = data.get("tokens"), data.get("seconds")
    if isinstance(tokens, int | float) and isinstance(seconds, int | float) and seconds > 0:
        parts.append(f"{tokens / seconds:.0f} tokens/s")
    return " · ".join(parts)


def _progress_text(job: FineTune) -> str:
    progress = job.progress or Progress()
    steps = f"step {progress.step}/{progress.total_steps}" if progress.total_steps else ""
    return " · ".join(filter(None, (progress.phase, steps, _time_left(job))))


def _time_left(job: FineTune) -> str:
    remaining = job.progress.remaining_seconds if job.progress else None
    return "" if remaining is None or job.finished else f"{timedelta(seconds=round(remaining))} left"


def _serving_rows(serving: Serving) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("serving", serving.state), ("reason", serving.reason)]
    replicas = serving.replicas
    if len({(each.state, each.reason) for each in replicas}) > 1:
        rows += [
            (f"{each.gateway} {each.engine}", ": ".join(filter(None, (each.state, each.reason)))) for each in replicas
        ]
    return rows


def _evaluation_text(evaluation: Evaluation) -> str:
    parts = [
        f"{label} {base:.4f} → {tuned:.4f}"
        for label, base, tuned in (
            ("exact match", evaluation.base.exact_match, evaluation.tuned.exact_match),
            ("token accuracy", evaluation.base.token_accuracy, evaluation.tuned.token_accuracy),
            ("preference accuracy", evaluation.base.preference_accuracy, evaluation.tuned.preference_accuracy),
            ("preference margin", evaluation.base.preference_margin, evaluation.tuned.preference_margin),
            ("perplexity", evaluation.base.perplexity, evaluation.tuned.perplexity),
            ("loss", evaluation.base.loss, evaluation.tuned.loss),
        )
        if base is not None and tuned is not None
    ]
    return f"Base → tuned on {evaluation.rows} rows: {', '.join(parts)}"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _print_to_stderr(text: str, *, style: str = "") -> None:
    Console(stderr=True).print(Text(printable(text), style=style), soft_wrap=True)


def _write_raw(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _standard() -> Console:
    # Made at every use: a test or a shell may have exchanged standard output since the last.
    return Console(highlight=False, markup=False)
