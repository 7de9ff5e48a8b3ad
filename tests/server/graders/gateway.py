"""Owns a gateway on loopback that answers chat completions as a test says, and routes over it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.factories import PRINCIPAL
from tests.support.loopback_http import Answer, LoopbackServer, Received
from tunesmith_server.auth import Authenticator, Principal
from tunesmith_server.core import Core
from tunesmith_server.inference_proxy import InferenceProxy

CHAT = "/v1/chat/completions"


class Keys:
    """Knows one key."""

    async def find_principal(self, key: str) -> Principal | None:
        """The owner of `mine`."""
        return PRINCIPAL if key == "mine" else None


def authenticator_of(core: Core) -> Authenticator:
    """Knows one key."""
    return Authenticator(Keys(), core.signer)


@dataclass
class Gateway:
    """Keeps what it is asked; `answers` are contents of messages or whole answers, in turn, the last for ever."""

    answers: list[str | Answer | None] = field(default_factory=lambda: ['{"result": 0.5}'])
    asked: list[Received] = field(default_factory=list)

    def respond(self, request: Received) -> Answer | None:
        """Answers one chat request."""
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return completion(answer) if isinstance(answer, str) else answer


@asynccontextmanager
async def proxy_to(gateway: Gateway) -> AsyncIterator[InferenceProxy]:
    """The way to the gateway, as the control plane has it."""
    server = LoopbackServer(0, gateway.respond)
    proxy = InferenceProxy(f"http://127.0.0.1:{server.port}", reason_for_none="Inference is off.")
    try:
        yield proxy
    finally:
        await proxy.close()
        server.stop()


def completion(content: str | None, **message: Any) -> Answer:
    """A chat completion of 7 tokens."""
    body = {
        "model": "judge-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content, **message}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    return Answer(200, json.dumps(body).encode(), {"content-type": "application/json"})


def client_of(app: Any) -> httpx.AsyncClient:
    """A client with the key."""
    headers = {"authorization": "Bearer mine"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers)
