"""Owns a stream that is read until what makes it dies: when it has begun, and with what it ends.

It must not know who dies.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx

_BEGUN = 8
"""Events after which a stream has brought some of its text, on every route."""


async def cut(http: httpx.AsyncClient, route: str, body: Mapping[str, Any], begun: asyncio.Semaphore) -> str:
    """The code of the error that ends the stream, or what it ended with; `begun` is released once it has some text."""
    seen, last = 0, ""
    async with http.stream("POST", route, json={**body, "stream": True}) as events:
        assert events.status_code == 200, await events.aread()
        async for line in events.aiter_lines():
            if line.startswith("data: "):
                last, seen = line.removeprefix("data: "), seen + 1
                if seen == _BEGUN:
                    begun.release()
    told = json.loads(last) if last != "[DONE]" else {}
    code: str = told.get("error", {}).get("code", f"ended with {last}")
    return code
