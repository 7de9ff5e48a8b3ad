"""Owns what the simulator is held against real vLLM with: what is asked of both, and the shape of what they say.

It must not know how either is started. Shapes have every key, and the values that mean something in themselves; texts
and numbers are only told apart. Of a list, and of a stream, they have each different element once, in its order.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.inference import real_model
from tests.inference.conftest import MODEL, Engine
from tests.inference.gateway import requests_running, until
from tests.support.processes import descendants, words
from tunesmith_inference.request_body import Route
from tunesmith_inference.vllm import EngineLost, EngineUnavailable

MESSAGES = [{"role": "user", "content": "hi"}]
ONE_OF_TWO = {
    "type": "object",
    "properties": {"said": {"enum": ["yes", "no"]}},
    "required": ["said"],
    "additionalProperties": False,
}
"""A schema that leaves a random model nothing to get lost in."""
TOOLS = [{"type": "function", "function": {"name": "say", "parameters": ONE_OF_TWO}}]
CALL = {
    "model": MODEL,
    "messages": MESSAGES,
    "max_tokens": 120,
    "logit_bias": real_model.NO_BLANKS,
    "tools": TOOLS,
    "tool_choice": "required",
    "parallel_tool_calls": False,
}

LONG = {"model": MODEL, "messages": [{"role": "user", "content": "fault:long"}], "max_tokens": 400, "ignore_eos": True}
"""A request that is under way for longer than it takes to kill an engine."""

_WITH_USAGE = {"include_usage": True, "continuous_usage_stats": True}
_KEPT = frozenset(["object", "role", "finish_reason", "type", "param", "code", "index", "name"])


@dataclass(frozen=True, slots=True)
class Ask:
    """A request; without a body it is a GET."""

    name: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


def _chat(name: str, **changes: Any) -> Ask:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    return Ask(f"chat, {name}", Route.CHAT, body | {"logit_bias": real_model.ONLY_A} | changes)


def _text(name: str, **changes: Any) -> Ask:
    body = {"model": MODEL, "prompt": "one two", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    return Ask(f"completion, {name}", Route.COMPLETIONS, body | {"logit_bias": real_model.ONLY_A} | changes)


def _form(kind: str, **inner: Any) -> dict[str, Any]:
    return {"ignore_eos": False, "logit_bias": real_model.NO_BLANKS, "response_format": {"type": kind, **inner}}


_SCHEMA = {"name": "a", "schema": ONE_OF_TWO, "strict": True}
_CALL = {"ignore_eos": False, "logit_bias": real_model.NO_BLANKS, "max_tokens": 120, "tools": TOOLS}
_NAMED = {"type": "function", "function": {"name": "say"}}

GOOD = (
    Ask("health", "/health"),
    _chat("whole"),
    _chat("content in parts", messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
    _chat("several answers", n=2, temperature=1, seed=7),
    _chat("log-probabilities", logprobs=True, top_logprobs=2),
    _chat("log-probabilities without others", logprobs=True),
    _chat("max_completion_tokens", max_tokens=None, max_completion_tokens=2),
    _chat("schema", **_form("json_schema", json_schema=_SCHEMA)),
    _chat("called tool", **_CALL, tool_choice="required"),
    _chat("named tool", **_CALL, tool_choice=_NAMED),
    _chat("tools left alone", tools=TOOLS, tool_choice="none"),
    _chat("stream", stream=True),
    _chat("stream with usage at the end", stream=True, stream_options={"include_usage": True}),
    _chat("stream with usage", stream=True, stream_options=_WITH_USAGE),
    _chat("stream of several answers", stream=True, n=2, temperature=1, seed=7),
    _chat("stream of log-probabilities", stream=True, logprobs=True, top_logprobs=1),
    _chat("stream of a schema", stream=True, **_form("json_schema", json_schema=_SCHEMA)),
    _chat("stream of a called tool", stream=True, **_CALL, tool_choice="required"),
    _chat("no model", model=None),
    _text("whole"),
    _text("token ids", prompt=[5, 6, 7]),
    _text("token ids in and out", prompt=[5, 6, 7], logprobs=0, return_token_ids=True),
    _text("log-probabilities", logprobs=2),
    _text("several answers", n=2, temperature=1),
    _text("several prompts", prompt=["one", "two"]),
    _text("several prompts of token ids", prompt=[[5, 6], [7]]),
    _text("echo", echo=True),
    _text("stream", stream=True),
    _text("stream with usage", stream=True, stream_options=_WITH_USAGE),
    _text("stream of log-probabilities", stream=True, logprobs=1),
)
"""What is answered."""

BAD = (
    Ask("wrong key", "/v1/models", headers={"authorization": "Bearer other"}),
    Ask("no JSON", Route.CHAT, "{"),
    _chat("unknown model", model="nothing"),
    _chat("unknown model, streamed", model="nothing", stream=True),
    _chat("temperature", temperature=9),
    _chat("temperature, streamed", temperature=9, stream=True),
    _chat("top_p", top_p=3),
    _chat("frequency_penalty", frequency_penalty=9),
    _chat("no answers", n=0),
    _chat("several greedy answers", n=2),
    _chat("no tokens", max_tokens=0),
    _chat("too many tokens", max_tokens=100_000),
    _chat("too long a prompt", messages=[{"role": "user", "content": "word " * 5000}]),
    _chat("logit_bias", logit_bias=5),
    _chat("stop", stop=5),
    _chat("seed", seed="x"),
    _chat("top_logprobs alone", top_logprobs=2),
    _chat("too many log-probabilities", logprobs=True, top_logprobs=50),
    _chat("response_format", response_format={"type": "song"}),
    _chat("tool that is not there", tools=TOOLS, tool_choice={**_NAMED, "function": {"name": "sing"}}),
    _chat("tool_choice without tools", tool_choice="required"),
    _text("unknown model", model="nothing"),
    _text("no prompt", prompt=None),
    _text("empty prompt", prompt=""),
    _text("token ids out of range", prompt=[10**8]),
    _text("too long a prompt", prompt="word " * 5000),
    _text("too many token ids", prompt=[5] * 5000),
    _text("too many tokens", max_tokens=100_000),
    _text("suffix", suffix="end"),
)
"""What is refused."""


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no configuration": lambda folder: (folder / "adapter_config.json").unlink(),
    "broken configuration": lambda folder: (folder / "adapter_config.json").write_text('{"r": 8'),
    "rank": lambda folder: (folder / "adapter_config.json").write_text(
        json.dumps(json.loads((folder / "adapter_config.json").read_text()) | {"r": 512})
    ),
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "broken weights": lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 64),
}
"""What can be wrong with the folder of an adapter."""


async def said(engine: httpx.AsyncClient, ask: Ask) -> dict[str, Any]:
    """The shape of an engine's answer: status, kind of content, and what is in it."""
    content = ask.body if isinstance(ask.body, str) else json.dumps(ask.body)
    headers = {"content-type": "application/json", **ask.headers}
    if ask.body is None:
        return shape_of(await engine.get(ask.path, headers=ask.headers))
    return shape_of(await engine.post(ask.path, content=content, headers=headers))


def shape_of(response: httpx.Response) -> dict[str, Any]:
    """The shape of an answer that was read."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    told: Any = response.text
    if kind == "application/json":
        told = shape(response.json())
    elif kind == "text/event-stream":
        told = events(response.text.splitlines())
    return {"status": response.status_code, "kind": kind, "told": told}


def events(lines: Iterable[str]) -> list[Any]:
    """The shapes of server-sent events, each different one once."""
    told = [line.removeprefix("data: ") for line in lines if line]
    return _different(each if each == "[DONE]" else shape(json.loads(each)) for each in told)


def shape(value: Any, name: str = "") -> Any:
    """What is always the same in a value that stands under a name."""
    if isinstance(value, dict):
        if name == "top_logprobs" and "token" not in value:
            return {"a token": _different(map(shape, value.values()))}
        return {key: shape(inner, key) for key, inner in value.items()}
    if isinstance(value, list) and name != "bytes":
        return _different(shape(inner, name) for inner in value)
    if value is None or name in _KEPT:
        return value
    if name == "bytes":
        return name
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two shapes are not the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = {name: (one.get(name, "-"), other.get(name, "-")) for name in one | other}
    elif isinstance(one, list) and isinstance(other, list):
        pairs = {str(place): pair for place, pair in enumerate(itertools.zip_longest(one, other, fillvalue="-"))}
    else:
        return [] if one == other else [f"{at}: {one} and {other}"]
    return [found for name, pair in pairs.items() for found in differences(*pair, f"{at}.{name}")]


def _different(shapes: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for each in shapes:
        if each not in found:
            found.append(each)
    return found


async def life(engine: Engine) -> list[dict[str, Any]]:
    """What an engine says while an adapter is loaded, used and unloaded, and each of it once more."""
    name, folder = "r-300", engine.make_adapter(engine.folder / "life", 300)
    load = Ask("load", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
    unload = Ask("unload", "/v1/unload_lora_adapter", {"lora_name": name})
    chat = Ask("chat", Route.CHAT, {"model": name, "messages": MESSAGES, "max_tokens": 2, "ignore_eos": True})
    incomplete = Ask("load", "/v1/load_lora_adapter", {"lora_path": str(folder)})
    models = Ask("models", "/v1/models")
    return [await said(engine.http, ask) for ask in (incomplete, load, load, models, chat, unload, unload, chat)]


async def lose_core(engine: Engine) -> None:
    """Has the simulator behave as if what computes had been killed."""
    await engine.http.post(Route.CHAT, json=LONG | {"messages": [{"role": "user", "content": "fault:core"}]})


async def kill_core(engine: Engine) -> None:
    """Kills what computes in a real engine: a process of its own, below the one that is asked."""
    (core,) = [pid for pid in descendants(engine.pid) if "EngineCore" in words(pid, "cmdline")[0]]
    os.kill(core, signal.SIGKILL)


async def dies(engine: Engine, kill: Callable[[], Any]) -> dict[str, Any]:
    """What an engine says to those whom it is answering when it dies, and to those who come later."""
    async with engine.http.stream("POST", Route.CHAT, json=LONG | {"stream": True}) as streamed:
        lines = streamed.aiter_lines()
        begun = [await anext(lines) for _ in range(3)]
        whole = asyncio.create_task(engine.http.post(Route.CHAT, json=LONG))
        known = asyncio.create_task(engine.client.answer(Route.CHAT, LONG))
        await until(lambda: _all_running(engine))
        await kill()
        rest = [line async for line in lines]
    with pytest.raises(EngineLost):
        await known
    with pytest.raises(EngineUnavailable) as later:
        await engine.client.answer(Route.CHAT, LONG)
    assert not isinstance(later.value, EngineLost), "a request that comes later has killed nothing"
    await until(lambda: _gone(engine))
    return {"streamed": events(begun + rest), "whole": shape_of(await whole)}


async def _all_running(engine: Engine) -> bool:
    return await requests_running(engine.http) == 3


async def _gone(engine: Engine) -> bool:
    """Whether it does not even take connections any more."""
    try:
        assert (await engine.http.get("/health")).status_code == 503
    except httpx.ConnectError:
        return True
    except httpx.HTTPError:
        return False
    return False
