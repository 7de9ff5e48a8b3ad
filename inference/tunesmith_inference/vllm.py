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

import aiohttp

from tunesmith_inference.assembly import whole_answer
from tunesmith_inference.dialect import in_its_words, put_right, with_few_blanks
from tunesmith_inference.errors import GatewayError, engine_failed, invalid_request
from tunesmith_inference.greedy_choices import asked_once, repeated, repeated_chunks

_log = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
# An idle connection is given up before the engine's server does it (5 s), or a request could meet a closed one.
_KEEPALIVE_SECONDS = 2.0
_HEALTH_SECONDS = 5.0
_ADMIN_SECONDS = 120.0
_MAX_MESSAGE = 500
_INNARDS = re.compile(r"--\w|validation error")
_REASON = re.compile(r"'msg': (?:'([^']*)'|\"([^\"]*)\")")
"""What its validator says first about a body; what the client sent stands elsewhere."""
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


@dataclass(frozen=True, slots=True)
class _Answer:
    """A small answer that is read whole."""

    status: int
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class VllmClient:
    """Talks to one engine over its unix socket."""

    def __init__(self, socket: Path, api_key: str) -> None:
        self._is_dead = False
        self.failures = 0
        """Requests in a row, up to the last one, on which the engine failed."""
        self._http = aiohttp.ClientSession(
            base_url="http://engine",
            headers={"authorization": f"Bearer {api_key}", "content-type": "application/json"},
            timeout=_TIMEOUT,
            connector=aiohttp.UnixConnector(str(socket), limit=0, keepalive_timeout=_KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def healthy(self) -> bool:
        """Whether the engine answers and its core lives."""
        return await self._health() == 200

    async def _health(self) -> int:
        """The status with which it says how it is: 503 when it, or what computes, is gone; 0 when it is too slow."""
        try:
            return (await self._call("GET", "/health", seconds=_HEALTH_SECONDS)).status
        except EngineUnavailable as error:
            return 0 if isinstance(error.__cause__, TimeoutError) else 503

    async def computes(self, model: str) -> bool:
        """Whether it gives an answer to the smallest of questions."""
        try:
            await self.complete_greedily(model, [1], 1)
        except EngineUnavailable:
            return False
        except ValueError:
            pass  # it looked at the question
        self.failures = 0
        return True

    async def version(self) -> str:
        """The engine's version, such as 0.32.0; raises EngineUnavailable."""
        answer = await self._call("GET", "/version")
        return str(answer.json().get("version", "")) if answer.status == 200 else ""

    async def models(self) -> set[str]:
        """The names that it answers to, its own and those of loaded adapters; raises EngineUnavailable."""
        answer = await self._call("GET", "/v1/models")
        if answer.status != 200:
            raise EngineUnavailable(f"status {answer.status}")
        return {str(model["id"]) for model in answer.json()["data"]}

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Loads an adapter; loading it again is no error. Raises AdapterRefused or EngineUnavailable."""
        answer = await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if answer.status != 200 and not (answer.status == 400 and b"already been loaded" in answer.content):
            raise AdapterRefused(f"the engine refused the adapter with status {answer.status}")

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
        if answer.status >= 500:
            raise EngineUnavailable(f"status {answer.status}")
        if answer.status != 200:
            raise ValueError(f"the engine refused the prompt with status {answer.status}")
        choice = answer.json()["choices"][0]
        return Completion(choice["token_ids"], choice["logprobs"]["token_logprobs"])

    async def answer(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer of `/v1/chat/completions` or `/v1/completions`.

        Raises GatewayError, or EngineUnavailable where another engine may answer instead.
        """
        once, copies = asked_once(body)
        # It has two readers of calls, and only that of streams finds one in an answer that was cut.
        is_streamed = bool(body.get("tools")) and body.get("tool_choice") != "none"
        if is_streamed:
            once = {**once, "stream": True, "stream_options": {"include_usage": True}}
        response = await self._begun(route, once)
        try:
            if is_streamed:
                answer = await whole_answer(self._chunks(response, once, is_shown=False))
            else:
                answer = json.loads(await response.read())
        except aiohttp.ClientError as error:
            raise _lost(error) from error
        finally:
            response.close()
        return repeated(put_right(answer, body), copies)

    @asynccontextmanager
    async def stream(self, route: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The chunks of a streamed answer; raises as `answer` does up to the first one, and GatewayError between two.

        Leaving the block early makes the engine drop the request.
        """
        once, copies = asked_once(body)
        response = await self._begun(route, once)
        try:
            chunks = self._chunks(response, once, is_shown=True)
            yield repeated_chunks((put_right(chunk, body) async for chunk in chunks), copies)
        finally:
            response.close()

    async def _begun(self, route: str, body: Mapping[str, Any]) -> aiohttp.ClientResponse:
        """An answer of status 200 whose content is still to be read."""
        asked = in_its_words(body)
        bounded = with_few_blanks(asked)
        try:
            return await self._begun_as_it_is(route, bounded)
        except GatewayError as refusal:
            if bounded is asked or refusal.param != "response_format":
                raise
        # There may be another way to follow the schema, or the engine says what is wrong with it.
        return await self._begun_as_it_is(route, asked)

    async def _begun_as_it_is(self, route: str, body: Mapping[str, Any]) -> aiohttp.ClientResponse:
        self._check_open()
        try:
            response = await self._http.post(route, data=_encoded(body))
        except aiohttp.ClientConnectorError as error:
            raise EngineUnavailable("it does not take connections") from error
        except aiohttp.ClientError as error:
            self.failures += 1
            raise _lost(error) from error
        self.failures = self.failures + 1 if response.status >= 500 else 0
        if response.status == 200:
            return response
        try:
            content = await response.read()
        except aiohttp.ClientError as error:
            raise _lost(error) from error
        finally:
            response.close()
        if response.status in (404, 503):
            # The gateway asks only for what it has loaded: the engine was restarted under the request.
            raise EngineUnavailable(f"it answered with status {response.status}")
        await self._check_alive(response.status)
        raise translated(response.status, content, body)

    async def _chunks(
        self, response: aiohttp.ClientResponse, sent: Mapping[str, Any], *, is_shown: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """Server-sent events as objects, up to `[DONE]`; an end without it is an engine that died.

        After events that are shown to the client no other engine can answer instead.
        """
        begun = False
        lines = _lines(response)
        try:
            async for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    # Up to the end of the body: a connection that is left before it cannot be used again.
                    async for _ in lines:
                        pass
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    status = _status_of(chunk["error"])
                    await self._check_alive(status)
                    raise translated(status, data, sent)
                begun = is_shown
                yield chunk
        except EngineLost as error:
            raise engine_failed() if begun else error from None
        except (aiohttp.ClientError, ValueError) as error:
            lost = _lost(error)
            raise engine_failed() if begun else lost from error
        lost = _lost(EOFError("the stream ended early"))
        raise engine_failed() if begun else lost

    async def _check_alive(self, status: int) -> None:
        """Raises EngineLost where an error came because what computes is gone: the process that told it ends soon."""
        if status < 500 or await self._health() != 503:
            return
        self._is_dead = True
        raise _lost(EOFError("its core ended"))

    def _check_open(self) -> None:
        if self._is_dead or self._http.closed:
            raise EngineUnavailable("it is gone")

    async def _call(
        self, method: str, route: str, body: Mapping[str, Any] | None = None, seconds: float = _ADMIN_SECONDS
    ) -> _Answer:
        self._check_open()
        try:
            async with (
                asyncio.timeout(seconds),
                self._http.request(method, route, data=None if body is None else _encoded(body)) as response,
            ):
                return _Answer(response.status, await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
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
        return invalid_request("context_length_exceeded", _sentence(message, at), at or content)
    at = at or _param_in(message, sent)
    return invalid_request("invalid_value", _sentence(message, at), at)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for part in response.content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line


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


def _param_in(message: str, sent: Mapping[str, Any]) -> str | None:
    """The parameter that the engine's sentence begins with or is about, where it names none itself."""
    if "grammar" in message.lower():
        return next((name for name in ("response_format", "tools") if name in sent), None)
    return next((word for word in re.findall(r"\w+", message) if word in sent and word != "model"), None)


def _sentence(message: str, at: str | None) -> str:
    """The engine's words where they help the client; its flags and its schema's innards do not."""
    line = _PARAMETER_NOTE.sub("", message.strip().splitlines()[0])[:_MAX_MESSAGE].rstrip(".: ")
    reason = _REASON.search(message)
    if reason and at:
        return f"`{at}` does not fit: {(reason[1] or reason[2]).rstrip('.')}."
    if _INNARDS.search(line):
        return "The engine does not take this combination or form of parameters. Compare it with the API reference."
    return f"{line}."


def _lost(error: Exception) -> EngineLost:
    _log.error("engine lost during a request: %s", type(error).__name__)
    return EngineLost(type(error).__name__)


def _status_of(error: object) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500
