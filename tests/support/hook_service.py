"""Owns the operator's services behind hooks, for tests: one that flags texts, one that takes words out of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.asgi_server import serving


class HookService:
    """Answers OpenAI's moderations at /v1/moderations, and a redaction hook at /redact.

    A text with one of `words` in it is flagged, and loses them. `answer`, when set, is said instead, under `status`.
    While `held` is set, nothing is answered. `asked` are the bodies that came, `headers` those of the last request.
    """

    def __init__(self) -> None:
        self.words: set[str] = set()
        self.status = 200
        self.answer: Any = None
        self.held = False
        self.asked: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.gone = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[HookService]:
        """Serves at `url`."""
        routes = [Route("/v1/moderations", self._moderate, methods=["POST"])]
        routes.append(Route("/redact", self._redact, methods=["POST"]))
        async with serving(Starlette(routes=routes)) as url:
            self.url = url
            yield self

    async def _moderate(self, request: Request) -> Response:
        texts = await self._texts(request)
        results = [{"flagged": any(word in text.split() for word in self.words), "categories": {}} for text in texts]
        return self._answered({"id": "modr-1", "model": "m", "results": results})

    async def _redact(self, request: Request) -> Response:
        texts = await self._texts(request)
        return self._answered({"results": [{"text": self._without_words(text)} for text in texts]})

    async def _texts(self, request: Request) -> list[str]:
        body = await request.json()
        self.asked.append(body)
        self.headers = dict(request.headers)
        while self.held:
            await asyncio.sleep(0.01)
            if await request.is_disconnected():
                self.gone += 1
                break
        texts: list[str] = body["input"]
        return texts

    def _answered(self, usual: dict[str, Any]) -> Response:
        return JSONResponse(usual if self.answer is None else self.answer, self.status)

    def _without_words(self, text: str) -> str:
        for word in self.words:
            text = text.replace(word, "***")
        return text
