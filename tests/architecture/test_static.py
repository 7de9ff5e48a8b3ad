"""Lint, format and strict types: run as tests, so that no green build has warnings."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.source_tree import ROOT

TYPED = ["server", "trainer", "inference", "sdk", "proto/generate.py", "deploy", "tests"]


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "--no-cache", "."], ["ruff", "format", "--check", "--no-cache", "."], ["mypy", *TYPED]],
    ids=lambda command: " ".join(command[:2]),
)
@pytest.mark.timeout(600)
def test_static_checks_are_clean(command: list[str]) -> None:
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
