"""Owns the source of time, so that tests can move it.

It must not know what the time is used for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns Unix seconds."""

system_clock: Clock = time.time
