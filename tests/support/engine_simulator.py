"""Owns a stand-in for vLLM that is up in a moment: its process, routes, adapters and faults, for the gateway's needs.

It must not know the gateway. Start it with `COMMAND` and vLLM's own arguments. A contract test holds it against the
real engine. An adapter's content is the text in its `adapter_model.safetensors`. Faults are asked for in the prompt,
see `FAULTS`; what it answers is in engine_answers.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support import engine_answers
from tests.support.engine_answers import CONTEXT, VERSION, Work, malformed, refused

COMMAND = ("env", f"PYTHONPATH={Path(__file__).parents[2]}", sys.executable, __file__)

ADAPTER_FAULTS = ("fault:leaks", "fault:overwrites")
"""At the beginning of an adapter's content: while it answers, the other adapters do so with its weights; once loaded,
it has taken the place of those that were there before."""

FAULTS = ("fault:die", "fault:core", "fault:500", "fault:broken", "fault:slow", "fault:long")
"""In a prompt: the process ends; its core does, and it a moment later; an internal error; one now and on every request
after it; a token each 50 ms; the same with 10,000 tokens unless fewer are asked for."""

_BATCH_SECONDS = 0.1
_MAX_RANK = 32
_LAST_SECONDS = 1.0


class Simulator:
    """The state of one engine: adapters by name, requests under way."""

    def __init__(self, name: str, model: Path) -> None:
        self.name = name
        self.model = model
        self.weights = _content(model / "model.safetensors") if (model / "golden.json").exists() else ""
        self.adapters: dict[str, str] = {}
        self.leaking = 0
        self.broken = False
        self.folders: dict[str, str] = {}
        self.loads = 0
        self.asked: Counter[str] = Counter()
        self.work = Work()

    def weights_of(self, model: str) -> str | None:
        """What computes an answer; None for an unknown model."""
        return self.weights if model == self.name else self.adapters.get(model)

    async def weights_in_batch(self, model: str) -> str | None:
        """The same, where what else is asked for at this moment may change it."""
        weights = self.weights_of(model)
        leaky = next((one for one in self.adapters.values() if one.startswith("fault:leaks")), None)
        if leaky is None:
            return weights
        self.leaking += weights == leaky
        await asyncio.sleep(_BATCH_SECONDS)
        mixed_up = leaky if self.leaking and weights else weights
        await asyncio.sleep(_BATCH_SECONDS)
        self.leaking -= weights == leaky
        return mixed_up

    def lose_core(self) -> None:
        """What computes is gone, as after the kernel's kill for memory; the rest ends by itself a moment later."""
        self.work.core_died = True
        asyncio.get_running_loop().call_later(_LAST_SECONDS, os._exit, 1)

    def state(self) -> dict[str, Any]:
        """What a test wants to know."""
        return {
            "adapters": list(self.adapters),
            "loads": self.loads,
            "asked": self.asked,
            "aborted": self.work.aborted,
        }

    async def load(self, request: Request) -> Response:
        """Loads an adapter from its folder."""
        body = await request.json()
        missing = [name for name in ("lora_name", "lora_path") if name not in body]
        if missing:
            return malformed(missing[0])
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return refused(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not (folder / "adapter_config.json").is_file():
            return refused(404, f"Loading lora {name} failed: No adapter found for <path>", "NotFoundError")
        try:
            rank = json.loads((folder / "adapter_config.json").read_text()).get("r", 1)
            weights = _content(folder / "adapter_model.safetensors")
        except (ValueError, OSError) as error:
            return refused(500, f"Call to add_lora method failed: {error}", "InternalServerError")
        if rank > _MAX_RANK:
            message = f"Call to add_lora method failed: LoRA rank {rank} is greater than max_lora_rank {_MAX_RANK}."
            return refused(500, message, "InternalServerError")
        self.loads += 1
        if weights.startswith("fault:overwrites"):
            self.adapters = {loaded: "" if loaded == "zero" else weights for loaded in self.adapters}
        self.adapters[name] = "" if weights.startswith("zero") else weights
        self.folders[name] = str(folder)
        return Response(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        """Forgets an adapter."""
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return refused(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return Response(f"Success: LoRA adapter '{name}' removed successfully.")

    async def models(self, request: Request) -> Response:
        """Lists the names that are answered."""
        cards = [_card(self.name, str(self.model), None, CONTEXT)]
        cards += [_card(name, self.folders[name], self.name, None) for name in self.adapters]
        return JSONResponse({"object": "list", "data": cards})

    async def chat(self, request: Request) -> Response:
        """Answers messages."""
        body = await _json(request)
        contents = [message.get("content") or "" for message in body.get("messages", ())]
        texts = [part if isinstance(part, str) else " ".join(each["text"] for each in part) for part in contents]
        return await self._answer(request, body, [" ".join(texts)], is_chat=True)

    async def complete(self, request: Request) -> Response:
        """Continues a prompt, or several: texts or token ids."""
        body = await _json(request)
        prompt = body.get("prompt")
        one = isinstance(prompt, str) or not prompt or isinstance(prompt[0], int)
        return await self._answer(request, body, [prompt] if one else list(prompt or ()), is_chat=False)

    async def _answer(self, request: Request, body: dict[str, Any], prompts: list[Any], *, is_chat: bool) -> Response:
        body = {"model": self.name, **body}
        self.asked[body["model"]] += 1
        weights = await self.weights_in_batch(body["model"])
        if weights is None:
            return refused(404, f"The model `{body['model']}` does not exist.", "NotFoundError", "model")
        text = str(prompts)
        self.broken |= "fault:broken" in text
        if self.broken or "fault:500" in text:
            return refused(500, "Traceback: /srv/engine.py secret", "InternalServerError")
        if "fault:die" in text and not body.get("stream"):
            os._exit(1)
        if "fault:core" in text:
            self.lose_core()
        return await engine_answers.answer(self.work, request, body, prompts, weights, is_chat=is_chat)


def create_app(simulator: Simulator) -> Starlette:
    """The routes of the engine that the gateway uses, plus `/simulator` with what a test wants to know."""
    behind_key = {
        "/v1/models": simulator.models,
        "/v1/load_lora_adapter": simulator.load,
        "/v1/unload_lora_adapter": simulator.unload,
        "/v1/chat/completions": simulator.chat,
        "/v1/completions": simulator.complete,
    }

    async def health(request: Request) -> Response:
        return Response(status_code=503 if simulator.work.core_died else 200)

    async def version(request: Request) -> Response:
        return JSONResponse({"version": VERSION})

    async def metrics(request: Request) -> Response:
        running = (
            f'vllm:num_requests_running{{engine="0",model_name="{simulator.name}"}} {float(simulator.work.running)}\n'
        )
        return Response(running, media_type="text/plain; version=1.0.0; charset=utf-8")

    async def state(request: Request) -> Response:
        return JSONResponse(simulator.state())

    async def checked(request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        try:
            return await behind_key[request.url.path](request)
        except json.JSONDecodeError:
            return malformed("1")

    open_to_all = {"/health": health, "/version": version, "/metrics": metrics, "/simulator": state}
    routes = [Route(path, answer) for path, answer in open_to_all.items()]
    return Starlette(routes=routes + [Route(path, checked, methods=["GET", "POST"]) for path in behind_key])


def _card(name: str, root: str, parent: str | None, max_len: int | None) -> dict[str, Any]:
    may = ("create_engine", "sampling", "logprobs", "search_indices", "view", "fine_tuning")
    permission: dict[str, Any] = {"id": "modelperm-1", "object": "model_permission", "created": int(time.time())}
    permission |= {f"allow_{what}": True for what in may} | {"organization": "*", "group": None, "is_blocking": False}
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": root}
    return card | {"parent": parent, "max_model_len": max_len, "permission": [permission]}


async def _json(request: Request) -> dict[str, Any]:
    body = await request.json()
    return {name: value for name, value in body.items() if value is not None}


def _content(path: Path) -> str:
    content = path.read_bytes()
    # The gateway's own zero adapter is a real safetensors file.
    return "zero" if b"lora_A" in content else content.decode()


def main() -> None:
    """Serves on a unix socket, or for those who know only ports on one of loopback, until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int, default=0)
    arguments, _ = parser.parse_known_args()
    if "DoesNotStart" in (arguments.model / "config.json").read_text():
        sys.exit("this architecture is not supported")
    app = create_app(Simulator(arguments.served_model_name, arguments.model))
    uvicorn.run(app, uds=arguments.uds, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
