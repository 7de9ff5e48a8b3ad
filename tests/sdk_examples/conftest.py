"""The simulated platform as the `tunesmithd` that stands beside the interpreter."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SIMULATION = Path(__file__).with_name("simulated_platform.py")


@pytest.fixture
def simulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts a `tunesmithd` in place that behaves as it is told, see `simulated_platform`."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    program = binaries / "tunesmithd"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {SIMULATION} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    handler = signal.getsignal(signal.SIGTERM)
    yield lambda behaviour: monkeypatch.setitem(os.environ, "SIMULATED", behaviour)
    signal.signal(signal.SIGTERM, handler)
