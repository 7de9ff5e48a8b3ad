"""Owns the verbs of `tunesmith captures`.
Must not know HTTP, nor how anything is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from tunesmith._cli_context import MOST_AT_ONCE, AsJson, Limit, client_of
from tunesmith._cli_output import local_time, print_json, print_line, print_table
from tunesmith.types import Capture

captures_app = typer.Typer(no_args_is_help=True, help="Chat completions that were kept, and datasets of them.")

Model = Annotated[str | None, typer.Option(help="Only of requests for this model.")]
Pairs = Annotated[list[str] | None, typer.Option("--metadata", help="KEY=VALUE that must match; may be repeated.")]
Time = Annotated[datetime | None, typer.Option(help="In UTC, unless it has an offset; an end is exclusive.")]


@captures_app.command("list")
def list_captures(
    ctx: typer.Context, model: Model = None, metadata: Pairs = None, limit: Limit = 20, as_json: AsJson = False
) -> None:
    """List captures, newest first."""
    captures = client_of(ctx).captures
    pages = captures.list(model=model, metadata=_pairs(metadata), order="desc", limit=min(limit, MOST_AT_ONCE))
    found = list(itertools.islice(pages, limit))
    if as_json:
        print_json(found)
        return
    rows = [(each.id, local_time(each.created), each.model, each.choices[0].finish_reason) for each in found]
    print_table(("ID", "CREATED", "MODEL", "ENDED BY"), rows)


@captures_app.command("get")
def get(
    ctx: typer.Context,
    capture_id: Annotated[str, typer.Argument(help="The capture, chatcmpl-….")],
    as_json: AsJson = False,
) -> None:
    """Show what was asked and answered."""
    client = client_of(ctx)
    capture = client.captures.retrieve(capture_id)
    if as_json:
        print_json(capture)
        return
    for message in client.captures.messages(capture_id, limit=100):
        parts = [str(part.get("text", "")) for part in message.content_parts or ()]
        print_line(f"{message.role}: {message.content or ' '.join(parts)}")
    print_line(_answer(capture))


@captures_app.command("delete")
def delete(
    ctx: typer.Context, capture_ids: Annotated[list[str], typer.Argument(help="The captures, chatcmpl-….")]
) -> None:
    """Delete captures."""
    client = client_of(ctx)
    for capture_id in capture_ids:
        client.captures.delete(capture_id)
        print_line(f"Deleted {capture_id}")


@captures_app.command("dataset")
def make_dataset(
    ctx: typer.Context,
    filename: Annotated[str | None, typer.Argument(help="What the file is called.")] = None,
    model: Model = None,
    metadata: Pairs = None,
    since: Time = None,
    until: Time = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The newest so many.")] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Also older answers to equal prompts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a file to fine-tune with out of captures and print its id."""
    made = client_of(ctx).captures.create_dataset(
        filename=filename,
        model=model,
        metadata=_pairs(metadata),
        since=_seconds(since),
        until=_seconds(until),
        limit=limit,
        deduplicate=not keep_duplicates,
    )
    if as_json:
        print_json(made)
        return
    print_line(made.id)
    print_line(f"{made.rows} rows; left out: {made.duplicates} duplicates, {made.unusable} that no row can be made of")


def _answer(capture: Capture) -> str:
    message = capture.choices[0].message
    calls = [call.get("function", {}) for call in message.tool_calls or ()]
    told = [f"{call.get('name')}({call.get('arguments')})" for call in calls]
    return f"{message.role}: {' '.join(filter(None, (message.content, *told)))}"


def _pairs(given: Sequence[str] | None) -> dict[str, str] | None:
    """`KEY=VALUE` each; raises ValueError."""
    if not given:
        return None
    pairs = [pair.partition("=") for pair in given]
    if not all(key and equals for key, equals, _ in pairs):
        raise ValueError("Metadata are KEY=VALUE.")
    return {key: value for key, _, value in pairs}


def _seconds(given: datetime | None) -> int | None:
    return None if given is None else int(given.replace(tzinfo=given.tzinfo or UTC).timestamp())
