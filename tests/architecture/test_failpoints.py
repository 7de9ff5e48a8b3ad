"""Every named point of death is in the code once, and a fault test leads to it."""

from __future__ import annotations

import ast
from collections import Counter

from tests.architecture.source_tree import modules
from tests.faults.scenarios import SCENARIOS
from tunesmith_server.failpoints import NAMES


def placed() -> Counter[str]:
    """How often each name stands in a call of `reach`."""
    placing = [m for m in modules() if m.folder == "server" and "import reach" in m.path.read_text()]
    calls = (node for module in placing for node in ast.walk(module.tree))
    return Counter(
        str(ast.literal_eval(call.args[0]))
        for call in calls
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "reach"
        and isinstance(call.args[0], ast.Constant)
    )


def test_every_point_is_placed_once() -> None:
    assert placed() == Counter(NAMES), "a name that stands nowhere proves nothing; one that stands twice proves half"


def test_every_point_is_exercised() -> None:
    assert set(SCENARIOS) == set(NAMES), "tests/faults/scenarios.py says how each point is reached"
