"""Real vLLM under mixed load: adapters of three ranks and full weights at once, switches, and killed engines.

`pytest -m soak -s tests/faults/test_serving_under_load.py` prints the figures. On two cores: 0 of 2,000 answers wrong,
1,029 of them streamed; a name answered from its new model 0.28 s after it was moved and from the old one 0.33 s after
it was moved back, with 0 of 19 requests failed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.architecture.source_tree import ROOT
from tests.inference import real_model
from tests.inference.gateway import BASE, BASE_REVISION, servable
from tests.support import asgi_server
from tests.support.cut_stream import cut
from tests.support.processes import descendants, engine_at, listens_to_others, words
from tests.support.serving_control_plane import SERVICE_TOKEN, ServingControlPlane
from tunesmith_inference.app import serving
from tunesmith_inference.config import Settings
from tunesmith_inference.engine import EngineSpec, vllm_command
from tunesmith_proto.registry.v1 import serving_pb2

pytestmark = [pytest.mark.soak, pytest.mark.engine, pytest.mark.timeout(1800)]

ADAPTERS = {"rank-2": 2, "rank-8": 8, "rank-16": 16}
FULL = "whole"
MODELS = (BASE, *ADAPTERS, FULL)
TEXTS = ("one", "two words", "the third of them", "and a fourth that is longer than the others")
REQUESTS = 2000
AT_ONCE = 16
LONG: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "one"}], "max_tokens": 400},
    "/v1/completions": {"prompt": "one", "max_tokens": 400},
    "/v1/responses": {"input": "one", "max_output_tokens": 400},
}
"""Requests that are under way for longer than it takes to kill an engine."""


@dataclass
class Load:
    """Requests to a gateway and what came of them."""

    http: httpx.AsyncClient
    oracle: dict[tuple[str, str], str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the engines are warm and busy."""

    async def learn(self) -> None:
        """Asks every model everything, one request at a time: what each must answer in company, too."""
        for model, text in itertools.product(MODELS, TEXTS):
            self.oracle[model, text] = await self.whole(model, text)
        assert len(set(self.oracle.values())) == len(self.oracle), "answers that are alike would prove nothing"

    async def run(self, requests: Iterable[tuple[str, str, bool]]) -> None:
        """Asks all of it, so many at once, and compares each answer with what the model said alone."""
        waiting = iter(requests)

        async def work() -> None:
            for model, text, stream in waiting:
                try:
                    said = await (self.streamed if stream else self.whole)(model, text)
                except StreamBroken as broken:
                    self.outcomes[str(broken)] += 1
                    continue
                self.outcomes["streamed" if stream else "whole"] += 1
                if self.outcomes.total() > 4 * AT_ONCE:
                    self.reached.set()
                if said != self.oracle[model, text]:
                    self.wrong.append(f"{model} on {text!r}")

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def whole(self, model: str, text: str) -> str:
        """The answer in one piece, which no fault may keep from its client."""
        response = await self.http.post("/v1/chat/completions", json=body(model, text))
        assert response.status_code == 200, response.text
        said: str = response.json()["choices"][0]["message"]["content"]
        return said

    async def cut(self, route: str, model: str, begun: asyncio.Semaphore) -> str:
        """What ends a stream that goes on until its engine dies."""
        return await cut(self.http, route, {"model": model, "ignore_eos": True, **LONG[route]}, begun)

    async def streamed(self, model: str, text: str) -> str:
        """The answer put together; raises StreamBroken with the code that ended it."""
        said, ended = "", False
        async with self.http.stream("POST", "/v1/chat/completions", json=body(model, text) | {"stream": True}) as lines:
            assert lines.status_code == 200, await lines.aread()
            async for line in lines.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line:
                    chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise StreamBroken(chunk["error"]["code"])
                    said += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        assert ended, "a stream ends with [DONE] or with an error, never in silence"
        return said


class StreamBroken(Exception):
    """A stream ended with an error event; the text is its code."""


def body(model: str, text: str) -> dict[str, Any]:
    """A request with one right answer."""
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8, "ignore_eos": True}


def mixed(count: int, models: tuple[str, ...] = MODELS) -> Iterable[tuple[str, str, bool]]:
    """Requests to all models in no order, half of them streamed; the same ones each time."""
    chance = random.Random(7)
    return ((chance.choice(models), chance.choice(TEXTS), chance.random() < 0.5) for _ in range(count))


@contextlib.asynccontextmanager
async def gateway(folder: Path, started: list[tuple[str, Path]]) -> AsyncIterator[tuple[ServingControlPlane, Load]]:
    """A gateway on real engines with every model; `started` gets the name and socket of each engine started."""
    base = folder / "base_models" / BASE_REVISION
    base.parent.mkdir(parents=True)
    real_model.build_base(base)
    control_plane = ServingControlPlane()
    control_plane.keys["key-1"] = "p1"
    kinds = {BASE: serving_pb2.SERVABLE_KIND_BASE}
    control_plane.models[BASE] = servable(BASE, BASE_REVISION, kinds[BASE], project_id="")
    for seed, (name, rank) in enumerate(ADAPTERS.items(), 1):
        adapter = real_model.build_adapter(base, folder / name, seed, rank)
        add(control_plane, name, adapter, serving_pb2.SERVABLE_KIND_ADAPTER)
    extra = real_model.build_adapter(base, folder / "extra", 9, 4)
    add(control_plane, FULL, real_model.build_full(base, extra, folder / FULL), serving_pb2.SERVABLE_KIND_FULL)
    python = os.environ.get("TUNESMITH_ENGINE_PYTHON") or ROOT / ".venv-engine/bin/python"
    settings = Settings(
        control_plane=control_plane.address,
        cache_dir=folder,
        engine_device="cpu",
        engine_python=Path(python),
        service_token=SERVICE_TOKEN,
        max_lora_rank=16,
        hold_seconds=300,
    )

    def command(spec: EngineSpec, settings: Settings, socket: Path) -> list[str]:
        started.append((spec.name, socket))
        return vllm_command(spec, settings, socket)

    async with control_plane.running(), serving(settings, command) as app, asgi_server.serving(app) as url:
        headers = {"authorization": "Bearer key-1"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=400, trust_env=False) as http:
            yield control_plane, Load(http)


def add(control_plane: ServingControlPlane, name: str, folder: Path, kind: serving_pb2.ServableKind.ValueType) -> None:
    """Registers a folder as a revision and its name."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    control_plane.upsert(servable(name, control_plane.add_revision(files), kind))


async def test_nothing_is_wrong_or_lost(tmp_path: Path) -> None:
    started: list[tuple[str, Path]] = []
    async with gateway(tmp_path, started) as (control_plane, load):
        await load.learn()
        assert not any(listens_to_others(engine_at(socket)) for _, socket in started)
        began = time.monotonic()
        await load.run(mixed(REQUESTS))
        seconds = time.monotonic() - began
        assert (load.wrong, sum(load.outcomes.values())) == ([], REQUESTS)
        print(f"{REQUESTS} mixed requests, {dict(load.outcomes)}, 0 wrong, {REQUESTS / seconds:.0f} a second")
        await switches_lose_nothing(control_plane, load)
        for what, kill in (("what listens", _kill_listening), ("what computes", _kill_computing)):
            await a_killed_engine_comes_back(load, started, what, kill)


async def switches_lose_nothing(control_plane: ServingControlPlane, load: Load) -> None:
    """A name goes from one model to another and back under load, without a failed request."""
    asked: list[tuple[str, str]] = []
    ended = asyncio.Event()

    async def ask() -> None:
        for text in itertools.cycle(TEXTS):
            if ended.is_set():
                return
            asked.append((text, await load.whole("bot", text)))

    control_plane.deploy("bot", ("rank-2", 1))
    asking = [asyncio.create_task(ask()) for _ in range(AT_ONCE // 2)]
    for target in ("rank-16", "rank-2"):
        control_plane.deploy("bot", (target, 1))
        began = time.monotonic()
        while not any(said == load.oracle[target, text] for text, said in asked[-AT_ONCE // 2 :]):
            assert time.monotonic() - began < 60, f"the name did not move to {target}"
            await asyncio.sleep(0.01)
        print(f"{time.monotonic() - began:.2f} s until the name answered from {target}")
    ended.set()
    await asyncio.gather(*asking)
    allowed = {(text, load.oracle[model, text]) for model in ("rank-2", "rank-16") for text in TEXTS}
    assert set(asked) <= allowed
    print(f"{len(asked)} requests during two switches, 0 failed")


async def a_killed_engine_comes_back(
    load: Load, started: list[tuple[str, Path]], what: str, kill: Callable[[int], None]
) -> None:
    """Streams of the engine that dies end with an error; everything else is answered, and the set is whole again."""
    load.outcomes.clear()
    load.reached.clear()
    under_load = asyncio.create_task(load.run(mixed(400)))
    await load.reached.wait()
    begun = asyncio.Semaphore(0)
    cut = [asyncio.create_task(load.cut(route, model, begun)) for route in LONG for model in (BASE, *ADAPTERS)]
    for _ in cut:
        await begun.acquire()
    starts = len(started)
    kill(engine_at([socket for name, socket in started if name.startswith("base")][-1]))
    began = time.monotonic()
    assert Counter(await asyncio.gather(*cut)) == {"engine_error": len(cut)}
    await whole_again(load, starts + 1)
    whole = time.monotonic() - began
    await under_load
    answered = load.outcomes["streamed"] + load.outcomes["whole"]
    assert (load.wrong, set(load.outcomes) <= {"streamed", "whole", "engine_error"}) == ([], True)
    assert load.outcomes.total() - answered <= AT_ONCE
    assert len(started) == starts + 1, "one engine was started anew"
    print(
        f"{what} of an engine killed: {len(cut)} of {len(cut)} streams on {len(LONG)} routes and "
        f"{load.outcomes['engine_error']} of the load's ended with an error, {answered} of {load.outcomes.total()} "
        f"requests answered, 0 wrong; whole again {whole:.0f} s later"
    )


async def whole_again(load: Load, starts: int) -> None:
    """Returns when every engine is ready, after so many starts in all, and every adapter is proven."""
    async with asyncio.timeout(300):
        while True:
            engines = (await load.http.get("/health")).json()["engines"]
            adapters = [state for engine in engines for state in engine["adapters"].values()]
            ready = [*adapters, *(engine["state"] for engine in engines)]
            begun = sum(engine["starts"] for engine in engines)
            if begun == starts and len(adapters) == len(ADAPTERS) and set(ready) == {"ready"}:
                return
            await asyncio.sleep(0.1)


def _kill_listening(engine: int) -> None:
    os.kill(engine, signal.SIGKILL)


def _kill_computing(engine: int) -> None:
    """As the kernel does it for memory: the weights are in a process of their own, below the one that is asked."""
    (core,) = [pid for pid in descendants(engine) if "EngineCore" in words(pid, "cmdline")[0]]
    os.kill(core, signal.SIGKILL)
