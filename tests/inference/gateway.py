"""Owns what the gateway's tests share: a gateway in this process on simulated engines, and its control plane."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import save_file

from tests.support import asgi_server, engine_answers, engine_simulator, processes
from tests.support.serving_control_plane import SERVICE_TOKEN, ServingControlPlane
from tunesmith_inference.app import serving
from tunesmith_inference.config import Settings
from tunesmith_inference.engine import EngineSpec
from tunesmith_proto.registry.v1 import serving_pb2

BASE_REVISION = "b" * 64
BASE = "tiny"
GOLDEN_PROMPTS = ([1, 2, 3], [4, 5], [6, 7, 8, 9])


@dataclass(frozen=True, slots=True)
class GatewayUnderTest:
    """A running gateway: its control plane, a client with a valid key of project `p1`, its settings."""

    control_plane: ServingControlPlane
    http: httpx.AsyncClient
    settings: Settings
    started: list[tuple[str, Path]]
    """Name and socket of each engine started, in order."""

    async def chat(self, model: str, text: str = "hello there", **parameters: Any) -> httpx.Response:
        """One chat request."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **parameters}
        return await self.http.post("/v1/chat/completions", json=body)

    async def engines(self) -> list[dict[str, Any]]:
        """What /health says about the engines."""
        engines: list[dict[str, Any]] = (await self.http.get("/health")).json()["engines"]
        return engines

    async def simulator(self) -> dict[str, Any]:
        """What the newest engine says about itself, asked over its own socket."""
        async with engine_http(self.started[-1][1]) as client:
            state: dict[str, Any] = (await client.get("/simulator")).json()
            return state

    async def running(self) -> int:
        """How many requests the newest engine works on, by its own metrics."""
        async with engine_http(self.started[-1][1]) as client:
            return await requests_running(client)

    async def works_on(self, requests: int) -> bool:
        """Whether it is exactly so many."""
        return await self.running() == requests

    async def forget(self, revision: str) -> None:
        """Has the newest engine lose an adapter, as no engine should."""
        async with engine_http(self.started[-1][1]) as client:
            answer = await client.post("/v1/unload_lora_adapter", json={"lora_name": f"r-{revision[:16]}"})
            assert answer.status_code == 200

    def add_full(self, name: str, weights: str, **files: bytes) -> str:
        """Registers a full-weight model; gives the revision."""
        revision = self.control_plane.add_revision(full_files(weights) | files)
        self.control_plane.upsert(servable(name, revision, serving_pb2.SERVABLE_KIND_FULL))
        return revision

    def add_adapter(self, name: str, weights: str, **changes: Any) -> str:
        """Registers an adapter; gives the revision."""
        revision = self.control_plane.add_revision(adapter_files(weights) | changes.pop("files", {}))
        self.control_plane.upsert(servable(name, revision, serving_pb2.SERVABLE_KIND_ADAPTER, **changes))
        return revision


def engine_http(socket: Path) -> httpx.AsyncClient:
    """Talks to the engine at a socket as the gateway does, with its key, but through no code of the gateway's."""
    environment = processes.words(processes.engine_at(socket), "environ")
    (key,) = [word.removeprefix("VLLM_API_KEY=") for word in environment if word.startswith("VLLM_API_KEY=")]
    return httpx.AsyncClient(
        base_url="http://engine",
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
        transport=httpx.AsyncHTTPTransport(uds=str(socket)),
    )


async def requests_running(engine: httpx.AsyncClient) -> int:
    """How many requests an engine works on, by its own metrics."""
    (line,) = re.findall(r"^vllm:num_requests_running{.*} (.*)$", (await engine.get("/metrics")).text, re.MULTILINE)
    return int(float(line))


def servable(
    name: str, revision: str, kind: serving_pb2.ServableKind.ValueType, **changes: Any
) -> serving_pb2.ServableModel:
    """A model as the control plane announces it; `p1`'s unless told otherwise."""
    fields: dict[str, Any] = {
        "name": name,
        "project_id": "p1",
        "kind": kind,
        "revision": revision,
        "base_model_id": BASE,
        "base_revision": BASE_REVISION,
        "created": 1_800_000_000,
    }
    return serving_pb2.ServableModel(**(fields | changes))


def adapter_files(weights: str) -> dict[str, bytes]:
    """An adapter that the simulator loads, with the record that its proof is held against."""
    return {
        "adapter_model.safetensors": weights.encode(),
        "adapter_config.json": json.dumps({"peft_type": "LORA", "r": 8}).encode(),
        "golden.json": golden(weights),
    }


def full_files(weights: str) -> dict[str, bytes]:
    """A full-weight model that the simulator loads."""
    return {
        "config.json": b'{"max_position_embeddings": 8192}',
        "model.safetensors": weights.encode(),
        "golden.json": golden(weights),
    }


def golden(weights: str) -> bytes:
    """What a run would have recorded about these weights on the simulator's base model."""
    prompts = []
    for prompt in GOLDEN_PROMPTS:
        tokens, logprobs = engine_answers.greedy(weights, prompt, 4)
        base_tokens, base_logprobs = engine_answers.greedy("", prompt, 4)
        prompts.append(
            {
                "prompt_token_ids": prompt,
                "token_ids": tokens,
                "logprobs": logprobs,
                "base_token_ids": base_tokens,
                "base_logprobs": base_logprobs,
            }
        )
    return json.dumps({"dtype": "float32", "prompts": prompts}).encode()


def answer(weights: str, text: str, tokens: int) -> str:
    """What the simulator says to `text`."""
    return " ".join(map(str, engine_answers.greedy(weights, engine_answers.tokenized(text), tokens)[0]))


def simulator_command(spec: EngineSpec, settings: Settings, socket: Path) -> list[str]:
    """Starts the simulator in an engine's place."""
    model = ["--model", str(spec.model_folder), "--served-model-name", spec.name]
    return [*engine_simulator.COMMAND, *model, "--uds", str(socket)]


def make_base(cache_dir: Path, revision: str = BASE_REVISION) -> Path:
    """A base model's folder with one real matrix in it."""
    folder = cache_dir / "base_models" / revision
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"max_position_embeddings": 8192}')
    save_file({"model.layers.0.self_attn.o_proj.weight": np.ones((6, 4), np.float32)}, folder / "model.safetensors")
    return folder


@contextlib.asynccontextmanager
async def gateway_on_simulator(tmp_path: Path, **changes: Any) -> AsyncIterator[GatewayUnderTest]:
    """A gateway with one base model, whose engines are simulators; `template` is the base's chat template."""
    template = changes.pop("template", "{{ messages }}")
    control_plane = ServingControlPlane()
    control_plane.keys |= {"key-1": "p1", "key-2": "p2"}
    control_plane.models[BASE] = servable(BASE, BASE_REVISION, serving_pb2.SERVABLE_KIND_BASE, project_id="")
    (make_base(tmp_path) / "chat_template.jinja").write_text(template)
    fields: dict[str, Any] = {
        "control_plane": control_plane.address,
        "cache_dir": tmp_path,
        "engine_device": "cpu",
        "hold_seconds": 30.0,
        "service_token": SERVICE_TOKEN,
    }
    started: list[tuple[str, Path]] = []

    def command(spec: EngineSpec, settings: Settings, socket: Path) -> list[str]:
        started.append((spec.name, socket))
        return simulator_command(spec, settings, socket)

    async with control_plane.running():
        settings = Settings(**(fields | changes))
        async with serving(settings, command) as app, asgi_server.serving(app) as url:
            headers = {"authorization": "Bearer key-1"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=40, trust_env=False) as http:
                yield GatewayUnderTest(control_plane, http, settings, started)


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Waits for a condition, plain or awaitable, and gives its true value."""
    async with asyncio.timeout(seconds):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.02)
