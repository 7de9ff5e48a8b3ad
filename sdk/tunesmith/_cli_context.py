"""Owns what the groups of commands share: how a command gets its client, what Ctrl-C ends, options that many have.
Must not know any command.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tunesmith._cli_output import print_error
from tunesmith._client import Tunesmith

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MOST_AT_ONCE = 100
"""Longest page of most lists."""

_INTERRUPTED = 130

Limit = Annotated[int, typer.Option(min=1, help="How many to show at most.")]


def client_of(ctx: typer.Context) -> Tunesmith:
    """Return a client for the server and the key that the command line names; it is closed with the command."""
    path: Path | None = ctx.obj["api_key_file"]
    key = None if path is None else path.read_text("utf-8", errors="replace")
    client = Tunesmith(base_url=ctx.obj["base_url"], api_key=key)
    ctx.call_on_close(client.close)
    return client


@contextlib.contextmanager
def resumable(name: str, again: str) -> Iterator[None]:
    """Have Ctrl-C end the waiting for what goes on at the server, and say how to see it again."""
    try:
        yield
    except KeyboardInterrupt:
        print_error(f"{name} goes on without you. {again}")
        raise typer.Exit(_INTERRUPTED) from None


def finite(number: float | None) -> float | None:
    """Refuse, as an option's callback, what JSON has no word for."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is not a finite number.")
    return number
