"""A point does nothing unless it is armed; then the process dies at once, at the passage that was asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tunesmith_server import failpoints

PASS_THREE_TIMES = """
import sys
from tunesmith_server import failpoints
failpoints.arm(sys.argv[1])
for passage in range(3):
    print(passage, flush=True)
    failpoints.reach("claim.written")
"""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def run(spec: str) -> tuple[int, list[str]]:
    result = subprocess.run([sys.executable, "-c", PASS_THREE_TIMES, spec], capture_output=True, text=True, check=False)
    return result.returncode, result.stdout.split()


@pytest.mark.parametrize(
    ("spec", "outcome"),
    [
        ("", (0, ["0", "1", "2"])),
        ("claim.writing", (0, ["0", "1", "2"])),
        ("claim.written", (-9, ["0"])),
        ("claim.written:3", (-9, ["0", "1", "2"])),
        ("claim.written:4", (0, ["0", "1", "2"])),
    ],
)
def test_the_process_dies_at_the_passage_that_was_armed(spec: str, outcome: tuple[int, list[str]]) -> None:
    assert run(spec) == outcome


@pytest.mark.parametrize("spec", ["nowhere", "claim.written:x", "claim.written:-1", ":2"])
def test_a_name_that_no_point_has_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="TUNESMITH_FAILPOINT must be one of"):
        failpoints.arm(spec)


def test_nothing_happens_unarmed() -> None:
    for name in failpoints.NAMES:
        failpoints.reach(name)
