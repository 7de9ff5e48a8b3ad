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
from tunesmith._errors import ConfigurationError
from tunesmith.resources.fine_tune_request import Auto

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MOST_AT_ONCE = 100
"""Longest page of most lists."""

_INTERRUPTED = 130

Limit = Annotated[int, typer.Option(min=1, help="How many to show at most.")]


def client_of(ctx: typer.Context) -> Tunesmith:
    """Return a client for the server and the key that the command line names; it is closed with the command."""
    path: Path | None = ctx.obj["api_key_file"]
    key = None if path is None else path.read_text("utf-8", errors="replace")
    try:
        client = Tunesmith(base_url=ctx.obj["base_url"], api_key=key)
    except ConfigurationError as error:
        if error.code != "missing_api_key":
            raise
        message = (
            "There is no API key: name its file with --api-key-file or set TUNESMITH_API_KEY "
            "(`tunesmithd up` writes the first key to the file api_key in its home)."
        )
        raise ConfigurationError(message, code=error.code) from None
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


def whole_or_auto(text: str) -> int | Auto:
    """Read, as an option's parser, a whole number or the word that leaves it to the server."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a whole number nor auto.") from None


def number_or_auto(text: str) -> float | Auto:
    """Read, as an option's parser, a number that JSON has or the word that leaves it to the server."""
    if text == "auto":
        return "auto"
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(f"{text!r} is neither a finite number nor auto.")
    return number
