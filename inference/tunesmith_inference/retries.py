"""Owns how often something that may work later is tried, and after which pauses.

It must not know what is tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[object]]

PAUSES = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Seconds before the second try and those after it. After the last one it has failed until somebody asks anew."""


async def persistently(
    work: Callable[[], Awaitable[T]],
    passing: tuple[type[Exception], ...],
    failed: Callable[[Exception], None],
    sleep: Sleep = asyncio.sleep,
) -> T:
    """The result of `work`, tried again where it raises what is `passing`; `failed` is told before each pause.

    Raises what the last try does, and at once whatever else it raises.
    """
    for pause in PAUSES:
        try:
            return await work()
        except passing as error:
            failed(error)
            await sleep(pause)
    return await work()
