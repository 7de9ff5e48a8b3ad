"""Owns how a driver tells what it called and how that went: one JSON line per call on standard output.

It must not know any client. Runs under every Python that a pinned client needs; only the standard library is there.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Settings: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
"""Where the platform is, keys, names, files of the test."""

BASE: str = Settings.get("base_model", "")
"""The base model that is tuned and asked."""

MESSAGES: Any = [{"role": "user", "content": "Say a."}]
"""A question of one word."""

ROWS = b'{"messages": [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a"}]}\n' * 10
"""A training file."""

PROMPT_ROWS = b'{"prompt": "Say a.", "completion": "a"}\n' * 10
"""A training file of the old kind."""

TERMINAL = ("succeeded", "failed", "cancelled")

Value = TypeVar("Value")


@contextmanager
def call(name: str) -> Iterator[None]:
    """Reports the block as one call; what goes wrong in it ends the block and not the driver."""
    try:
        yield
    except Exception as error:  # whatever it is, it belongs into the report
        place = traceback.extract_tb(error.__traceback__)[1:2]
        line = place[0].lineno if place else 0
        _report({"call": name, "error": f"line {line}: {type(error).__name__}: {str(error)[:500]}"})
    else:
        _report({"call": name})


def raises(kind: type[BaseException], action: Callable[[], object], **expected: object) -> Any:
    """The error that `action` raises, whose attributes are as expected."""
    try:
        action()
    except kind as error:
        found = {name: getattr(error, name) for name in expected}
        assert found == expected, found
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def until(value: Callable[[], Value], condition: Callable[[Value], bool], seconds: float = 40) -> Value:
    """The first value for which the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition(found := value()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} seconds"
        time.sleep(0.1)
    return found


@contextmanager
def trainers_wait() -> Iterator[None]:
    """Inside, every training run waits before its third step, so that its job can be paused or cancelled."""
    hold = Path(Settings["hold_file"])
    hold.touch()
    try:
        yield
    finally:
        hold.unlink()


def _report(line: dict[str, str]) -> None:
    print(json.dumps(line), flush=True)
