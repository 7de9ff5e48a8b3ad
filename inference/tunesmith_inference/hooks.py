"""Owns the talk with an operator's hook: texts out over HTTP, one result for each of them back.

It must not know what the texts are or what becomes of them; none of them ever gets into a log.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_MAX_ANSWER_BYTES = 32 * 1024 * 1024


class HookFailed(Exception):
    """No usable answer; says why without quoting it."""


class Hook:
    """POSTs `{"input": [text, …], …}` to `url` and reads `{"results": [{…}, …]}`, the form of OpenAI's moderations.

    `seconds` bound a whole call.
    """

    def __init__(self, url: str, api_key: str, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._http = httpx.AsyncClient(
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=None,  # noqa: S113  # bounded as a whole
            trust_env=urlsplit(url).hostname not in _LOOPBACK,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, texts: Sequence[str], **more: str) -> list[dict[str, Any]]:
        """One result for each text, in their order; raises HookFailed. `more` goes into the body."""
        body = json.dumps({"input": list(texts), **more}).encode("ascii")
        try:
            async with asyncio.timeout(self._seconds):
                content = await self._post(body)
            results = json.loads(content)["results"]
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise HookFailed(type(error).__name__) from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise HookFailed("its answer is not {results: […]}") from None
        if not isinstance(results, list) or len(results) != len(texts):
            raise HookFailed("its answer has not one result for each text")
        if not all(isinstance(result, dict) for result in results):
            raise HookFailed("a result of its answer is no object")
        return results

    async def _post(self, body: bytes) -> bytes:
        headers = {"content-type": "application/json"}
        async with self._http.stream("POST", self._url, content=body, headers=headers) as answer:
            if answer.status_code != 200:
                raise HookFailed(f"it answered with status {answer.status_code}")
            content = bytearray()
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > _MAX_ANSWER_BYTES:
                    raise HookFailed("its answer is too large")
        return bytes(content)
