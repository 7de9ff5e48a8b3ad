"""Owns how an answer with thousands of entries is made without holding up other calls.

It must not know what is listed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pydantic import BaseModel
from starlette.responses import Response


async def encoded(make: Callable[[], BaseModel]) -> Response:
    """What `make` returns as JSON; both are made in a thread, since FastAPI would encode it on the event loop."""
    return Response(await asyncio.to_thread(lambda: make().model_dump_json()), media_type="application/json")
