"""Owns a served set of real adapters that lie in folders beside their engine.
Must not know what is asked of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.inference.conftest import Engine
from tunesmith_inference.router import Kind, Servable
from tunesmith_inference.served_set import ServedSet, Trouble
from tunesmith_inference.zero_adapter import write_zero_adapter


async def served_from_folders(engine: Engine, recycle: Callable[[str], None] = pytest.fail) -> ServedSet:
    """A served set whose adapters are the folders named by their servables, on top of a zero adapter."""
    zero = engine.folder / "zero"
    if not zero.exists():
        zero.mkdir()
        write_zero_adapter(engine.base, zero)
    await engine.client.load_adapter("zero", zero)

    async def fetch(servable: Servable) -> Path:
        return engine.folder / servable.name

    return ServedSet(
        engine.client,
        "zero",
        base_is_adapter=True,
        at_once=4,
        fetch=fetch,
        capacity=8,
        dtype="float32",
        is_pinned=lambda _: False,
        recycle=recycle,
        trouble=Trouble(),
        loaded=lambda _: None,
    )


def servable(name: str) -> Servable:
    """The adapter in the folder of this name."""
    return Servable(name, "p1", Kind.ADAPTER, name.encode().hex().ljust(64, "0"), "tiny", "b" * 64, 0, checkpoint=False)
