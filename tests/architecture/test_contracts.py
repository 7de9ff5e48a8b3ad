"""The contract between processes: generated code is fresh, the state table is total, every error is rendered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.architecture.source_tree import ROOT
from tunesmith_server.fine_tunes.state import TERMINAL, TRANSITIONS, State


def test_generated_code_is_fresh() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{result.stderr}: run `make proto` and commit the result"


def test_the_state_table_is_total() -> None:
    assert set(TRANSITIONS) == set(State), "every state needs a row, or a job can get stuck unseen"
    assert {state for state, following in TRANSITIONS.items() if not following} == TERMINAL


def test_every_state_can_end() -> None:
    reachable = {state: closure(state) for state in State if state not in TERMINAL}
    stuck = [state for state, following in reachable.items() if not following & TERMINAL]
    assert not stuck, f"{stuck} can never end"


def closure(state: State) -> set[State]:
    """All states that can follow, in any number of steps."""
    seen: set[State] = set()
    open_states = [state]
    while open_states:
        for following in TRANSITIONS[open_states.pop()] - seen:
            seen.add(following)
            open_states.append(following)
    return seen
