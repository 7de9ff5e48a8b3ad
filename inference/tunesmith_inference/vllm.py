"""Owns the HTTP API of a vLLM engine: the only file that knows its routes, bodies and error texts.

It must not know model names of ours, projects or processes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tunesmith_inference.errors import GatewayError, engine_failed, invalid_request

_log = logging.getLogger(__name__)

_TIMEOUT = httpx.Timeout(None, connect=5.0)
_HEALTH_SECONDS = 5.0
_ADMIN_SECONDS = 120.0
_MAX_MESSAGE = 500
_INNARDS = re.compile(r"--\w|validation error")
_PARAMETER_NOTE = re.compile(r"\s*\(parameter=.*\)\.?$")
_CONTEXT = re.compile(r"maximum (?:context|model) length|max_model_len|longer than the maximum", re.IGNORECASE)


class EngineUnavailable(Exception):
    """The engine is not there: not started, gone, or not answering."""


class EngineLost(EngineUnavailable):
    """The engine went away while it worked on a request, perhaps because of it."""


class AdapterRefused(Exception):
    """The engine does not load this adapter, and will not another time."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Token ids of an answer, with the natural logarithm of each one's probability."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]


class VllmClient:
    """Talks to one engine over its unix socket."""

    def __init__(self, socket: Path, api_key: str) -> None:
        self._http = httpx.AsyncClient(
            base_url="http://engine",
            headers={"authorization": f"Bearer {api_key}", "content-type": "application/json"},
            timeout=_TIMEOUT,
            transport=httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None)),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def healthy(self) -> bool:
        """Whether the engine answers and its core lives."""
        try:
            return (await self._http.get("/health", timeout=_HEALTH_SECONDS)).status_code == 200
        except httpx.HTTPError:
            return False

    async def version(self) -> str:
        """The engine's version, such as 0.32.0; raises EngineUnavailable."""
        answer = await self._call("GET", "/version")
        return str(answer.json().get("version", "")) if answer.status_code == 200 else ""

    async def models(self) -> set[str]:
        """The names that it answers to, its own and those of loaded adapters; raises EngineUnavailable."""
        answer = await self._call("GET", "/v1/models")
        if answer.status_code != 200:
            raise EngineUnavailable(f"status {answer.status_code}")
        return {str(model["id"]) for model in answer.json()["data"]}

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Loads an adapter; loading it again is no error. Raises AdapterRefused or EngineUnavailable."""
        answer = await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if answer.status_code != 200 and not (answer.status_code == 400 and "already been loaded" in answer.text):
            raise AdapterRefused(f"the engine refused the adapter with status {answer.status_code}")

    async def unload_adapter(self, name: str) -> None:
        """Forgets an adapter; forgetting it again is no error. Raises EngineUnavailable."""
        await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def complete_greedily(self, model: str, prompt: Sequence[int], tokens: int) -> Completion:
        """The `tokens` most likely tokens after `prompt`, one by one; never stops early.

        Raises ValueError when the engine does not take the prompt, EngineUnavailable when it is gone.
        """
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "logprobs": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = await self._call("POST", "/v1/completions", body)
        if answer.status_code >= 500:
            raise EngineUnavailable(f"status {answer.status_code}")
        if answer.status_code != 200:
            raise ValueError(f"the engine refused the prompt with status {answer.status_code}")
        choice = answer.json()["choices"][0]
        return Completion(choice["token_ids"], choice["logprobs"]["token_logprobs"])

    async def answer(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer of `/v1/chat/completions` or `/v1/completions`.

        Raises GatewayError, or EngineUnavailable where another engine may answer instead.
        """
        response = await self._begun(route, body)
        try:
            await response.aread()
        except httpx.HTTPError as error:
            raise _lost(error) from error
        finally:
            await response.aclose()
        answer: dict[str, Any] = response.json()
        return answer

    @asynccontextmanager
    async def stream(self, route: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The chunks of a streamed answer; raises as `answer` does up to the first one, and GatewayError between two.

        Leaving the block early makes the engine drop the request.
        """
        response = await self._begun(route, body)
        try:
            yield _chunks(response, body)
        finally:
            await response.aclose()

    async def _begun(self, route: str, body: Mapping[str, Any]) -> httpx.Response:
        """An answer of status 200 whose content is still to be read."""
        request = self._http.build_request("POST", route, content=_encoded(body))
        self._check_open()
        try:
            response = await self._http.send(request, stream=True)
        except httpx.ConnectError as error:
            raise EngineUnavailable("it does not take connections") from error
        except httpx.HTTPError as error:
            raise _lost(error) from error
        if response.status_code == 200:
            return response
        try:
            content = await response.aread()
        except httpx.HTTPError as error:
            raise _lost(error) from error
        finally:
            await response.aclose()
        if response.status_code in (404, 503):
            # The gateway asks only for what it has loaded: the engine was restarted under the request.
            raise EngineUnavailable(f"it answered with status {response.status_code}")
        raise translated(response.status_code, content, body)

    def _check_open(self) -> None:
        if self._http.is_closed:
            raise EngineUnavailable("it is gone")

    async def _call(self, method: str, route: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        self._check_open()
        try:
            async with asyncio.timeout(_ADMIN_SECONDS):
                return await self._http.request(method, route, json=body)
        except (httpx.HTTPError, TimeoutError) as error:
            raise EngineUnavailable(type(error).__name__) from error


def translated(status: int, error_body: bytes, sent: Mapping[str, Any]) -> GatewayError:
    """What a client sees of an engine's error: our codes and words, never the engine's body. `sent` is the request."""
    try:
        error = json.loads(error_body)["error"]
        message, param = str(error["message"]), str(error.get("param") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, param = "", ""
    if status >= 500 or status in (401, 403, 405) or not message:
        # The engine's own log has the cause; its message may quote what the client sent.
        _log.error("the engine answered with status %d", status)
        return engine_failed()
    at = _param_at_fault(param, sent)
    if _CONTEXT.search(message):
        content = "messages" if "messages" in sent else "prompt"
        return invalid_request("context_length_exceeded", _sentence(message), at or content)
    return invalid_request("invalid_value", _sentence(message), at)


async def _chunks(response: httpx.Response, sent: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events as objects, up to `[DONE]`; an end without it is an engine that died."""
    begun = False
    try:
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise translated(_status_of(chunk["error"]), data.encode(), sent)
            begun = True
            yield chunk
    except (httpx.HTTPError, ValueError) as error:
        lost = _lost(error)
        raise engine_failed() if begun else lost from error
    lost = _lost(EOFError("the stream ended early"))
    raise engine_failed() if begun else lost


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def _param_at_fault(param: str, sent: Mapping[str, Any]) -> str | None:
    """`messages.0` out of `body.messages.0.SomeUnionBranch.content`; None for what the client did not send."""
    names = param.removeprefix("body.").split(".")
    if names[0] == "max_tokens" and "max_completion_tokens" in sent:
        return "max_completion_tokens"  # which is newer, and the same to engines
    if names[0] not in sent:
        return None
    return ".".join(itertools.takewhile(lambda name: not name[:1].isupper(), names))


def _sentence(message: str) -> str:
    """The engine's words where they help the client; its flags and its schema's innards do not."""
    line = _PARAMETER_NOTE.sub("", message.strip().splitlines()[0])[:_MAX_MESSAGE].rstrip(".: ")
    if _INNARDS.search(line):
        return "The engine does not take this combination or form of parameters. Compare it with the API reference."
    return f"{line}."


def _lost(error: Exception) -> EngineLost:
    _log.error("engine lost during a request: %s", type(error).__name__)
    return EngineLost(type(error).__name__)


def _status_of(error: object) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500
