"""Owns the commands of the production guide, so that tests run what operators are told to run."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[2] / "deploy" / "PRODUCTION.md"


def follow(heading: str, environment: Mapping[str, str]) -> None:
    """Runs the commands below a heading; AssertionError with what they said when one fails."""
    section = GUIDE.read_text().partition(f"# {heading}\n")[2]
    commands = re.match(r"(?:(?!\n#).)*?```sh\n(.*?)```", section, re.DOTALL)
    assert commands is not None, f"the guide has no commands for {heading!r}"
    result = subprocess.run(
        ["sh", "-euc", commands[1]], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{commands[1]}\n{result.stdout}{result.stderr}"
