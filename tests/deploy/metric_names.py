"""Owns the names of every series that control plane and gateway expose."""

from __future__ import annotations

import re

from prometheus_client import generate_latest

import tunesmith_server.application  # noqa: F401  (with it, everything that counts)
from tunesmith_inference.ledger import Ledger
from tunesmith_inference.rate_limits import RateLimiter
from tunesmith_inference.usage import Usage

_TYPE = re.compile(r"# TYPE (\w+) (\w+)")
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
_NAME = re.compile(r"\btunesmith_[a-z_]+\b")
_NOT_METRICS = re.compile(r"tunesmith_(server|trainer|inference|proto)")


def series() -> set[str]:
    """What a query may name."""

    async def report(_batch: object) -> None:
        raise AssertionError("nothing is reported here")

    gateway = Usage(RateLimiter(), Ledger(report)).exposition()
    text = (generate_latest() + gateway).decode()
    return {name + suffix for name, kind in _TYPE.findall(text) for suffix in _SUFFIXES.get(kind, ("",))}


def named_in(text: str) -> set[str]:
    """The series that a text names."""
    return {name for name in _NAME.findall(text) if not _NOT_METRICS.match(name)}
