"""Owns what the groups of commands share: how a command gets its client, and options that many have.
Must not know any command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith._client import Tunesmith

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option(min=1, help="How many to show at most.")]


def client_of(ctx: typer.Context) -> Tunesmith:
    """Return a client for the server and the key that the command line names; it is closed with the command."""
    path: Path | None = ctx.obj["api_key_file"]
    key = None if path is None else path.read_text("utf-8", errors="replace")
    client = Tunesmith(base_url=ctx.obj["base_url"], api_key=key)
    ctx.call_on_close(client.close)
    return client
