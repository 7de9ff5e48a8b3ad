"""Owns a stand-in for vLLM that is up in a moment: its routes, bodies and faults as far as the gateway uses them.

It must not know the gateway. Run as `python engine_simulator.py --uds PATH --served-model-name NAME …`. A contract test
holds it against the real engine. Its "model" continues every prompt with tokens that depend on prompt and adapter; an
adapter's content is the text in its `adapter_model.safetensors`. Made to choose a tool, it calls the first one; told
where to stop, it says as much and gives that as the reason. Faults are asked for in the prompt, see `FAULTS`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

FAULTS = ("fault:die", "fault:500", "fault:slow", "fault:long", "fault:broken")
"""In a prompt: the process ends; an internal error; a token each 50 ms; 10,000 tokens unless fewer are asked for; an
internal error now and on every request after it."""

ADAPTER_FAULTS = ("fault:leaks", "fault:overwrites")
"""At the beginning of an adapter's content: while it answers, the other adapters do so with its weights; once loaded,
it has taken the place of those that were there before."""

_MAX_LEN = 2048
_BATCH_SECONDS = 0.02


def greedy(weights: str, prompt: Sequence[int], tokens: int) -> tuple[list[int], list[float]]:
    """The tokens and log-probabilities with which a model of these weights answers; "" is the base model."""
    seed = hashlib.sha256(f"{weights}|{list(prompt)}".encode()).digest()
    return [seed[i % 32] for i in range(tokens)], [-seed[(i + 7) % 32] / 256 for i in range(tokens)]


def tokenized(text: str) -> list[int]:
    """The simulator's tokenizer: one token a word."""
    return [sum(word.encode()) % 256 for word in text.split()]


class Simulator:
    """The state of one engine: adapters by name, requests under way."""

    def __init__(self, name: str, model: Path) -> None:
        self.name = name
        self.weights = _content(model / "model.safetensors") if (model / "golden.json").exists() else ""
        self.adapters: dict[str, str] = {}
        self.leaking = 0
        self.broken = False
        self.loads = 0
        self.asked: Counter[str] = Counter()
        self.formats: list[Any] = []
        self.aborted = 0
        self.running = 0

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

    def state(self) -> dict[str, Any]:
        """What a test wants to know."""
        return {
            "adapters": list(self.adapters),
            "loads": self.loads,
            "asked": self.asked,
            "formats": self.formats,
            "aborted": self.aborted,
            "running": self.running,
        }

    async def load(self, request: Request) -> Response:
        """Loads an adapter from its folder."""
        body = await request.json()
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not (folder / "adapter_config.json").is_file():
            return _error(404, f"No adapter found for {folder}", "NotFoundError")
        if json.loads((folder / "adapter_config.json").read_text()).get("r", 1) > 32:
            return _error(500, "LoRA rank is greater than max_lora_rank 32.", "InternalServerError")
        self.loads += 1
        weights = _content(folder / "adapter_model.safetensors")
        if weights.startswith("fault:overwrites"):
            self.adapters = {loaded: "" if loaded == "zero" else weights for loaded in self.adapters}
        self.adapters[name] = "" if weights.startswith("zero") else weights
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        """Forgets an adapter."""
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return PlainTextResponse("Success")

    async def models(self, request: Request) -> Response:
        """Lists the names that are answered."""
        return JSONResponse({"object": "list", "data": [{"id": name} for name in (self.name, *self.adapters)]})

    async def chat(self, request: Request) -> Response:
        """Answers messages."""
        body = await request.json()
        text = " ".join(_text_of(message) for message in body["messages"])
        return await _answer(self, request, body, tokenized(text), text, is_chat=True)

    async def complete(self, request: Request) -> Response:
        """Continues a prompt, text or token ids."""
        body = await request.json()
        prompt = body["prompt"]
        tokens = tokenized(prompt) if isinstance(prompt, str) else prompt
        return await _answer(self, request, body, tokens, str(prompt), is_chat=False)


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
        return Response()

    async def version(request: Request) -> Response:
        return JSONResponse({"version": "0.32.0"})

    async def state(request: Request) -> Response:
        return JSONResponse(simulator.state())

    async def checked(request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        return await behind_key[request.url.path](request)

    routes = [Route("/health", health), Route("/version", version), Route("/simulator", state)]
    return Starlette(routes=routes + [Route(path, checked, methods=["GET", "POST"]) for path in behind_key])


async def _answer(
    simulator: Simulator, request: Request, body: dict[str, Any], prompt: list[int], text: str, *, is_chat: bool
) -> Response:
    simulator.asked[body["model"]] += 1
    simulator.formats += [body["response_format"]] if "response_format" in body else []
    weights = await simulator.weights_in_batch(body["model"])
    if weights is None:
        return _error(404, f"The model `{body['model']}` does not exist.", "NotFoundError", "model")
    if not isinstance(body.get("logit_bias", {}), dict):
        return _error(400, "1 validation error:\n  ...", param="body.logit_bias")
    if not 0 <= body.get("temperature", 1) <= 2:
        return _error(400, f"temperature must be in [0, 2], got {body['temperature']}.", param="temperature")
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or (10_000 if "fault:long" in text else 16)
    if len(prompt) > _MAX_LEN or (limit > _MAX_LEN and "fault:long" not in text):
        message = f"max_tokens={limit} cannot be greater than max_model_len={_MAX_LEN}. Please request fewer."
        if len(prompt) > _MAX_LEN:
            message = f"This model's maximum context length is {_MAX_LEN} tokens. Yours has {len(prompt)}."
        return _error(400, message, param="max_tokens" if len(prompt) <= _MAX_LEN else "input_tokens")
    simulator.broken |= "fault:broken" in text
    if simulator.broken or "fault:500" in text:
        return _error(500, "Traceback: /srv/engine.py secret", "InternalServerError")
    if "fault:die" in text and not body.get("stream"):
        os._exit(1)
    answer = _Answer(simulator, body, prompt, text, greedy(weights, prompt, limit), is_chat=is_chat)
    if body.get("stream"):
        return StreamingResponse(answer.events(), media_type="text/event-stream")
    return JSONResponse(await answer.whole(request))


class _Answer:
    """One answer, whole or as events."""

    def __init__(
        self,
        simulator: Simulator,
        body: dict[str, Any],
        prompt: list[int],
        text: str,
        result: tuple[list[int], list[float]],
        *,
        is_chat: bool,
    ) -> None:
        self._simulator = simulator
        self._body = body
        self._tokens, self._logprobs = result
        self._is_chat = is_chat
        self._pause = 0.05 if "fault:slow" in text or "fault:long" in text else 0.0
        self._dies = "fault:die" in text
        self._reason = "stop" if body.get("stop") else "length"
        self._calls = bool(body.get("tools")) and body.get("tool_choice", "auto") not in ("auto", "none")
        count = len(self._tokens)
        self._usage = {"prompt_tokens": len(prompt), "completion_tokens": count, "total_tokens": len(prompt) + count}
        kind = ("chat.completion" if is_chat else "text_completion") + (
            ".chunk" if is_chat and body.get("stream") else ""
        )
        name = f"chatcmpl-{uuid.uuid4().hex}"
        self._head = {"id": name, "object": kind, "created": int(time.time()), "model": body["model"]}

    async def whole(self, request: Request) -> dict[str, Any]:
        self._simulator.running += 1
        try:
            for _ in self._tokens if self._pause else ():
                await asyncio.sleep(self._pause)
                if await request.is_disconnected():
                    self._simulator.aborted += 1
                    break
        finally:
            self._simulator.running -= 1
        text = " ".join(map(str, self._tokens))
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._reason, "logprobs": None}
        if self._calls:
            function = {"name": self._body["tools"][0]["function"]["name"], "arguments": json.dumps({"said": text})}
            call = {"id": "chatcmpl-tool-1", "type": "function", "function": function}
            choice["message"] = {"role": "assistant", "content": "", "refusal": None, "tool_calls": [call]}
            choice["finish_reason"] = "tool_calls"
        elif self._is_chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice |= {"text": text, "token_ids": self._tokens, "logprobs": {"token_logprobs": self._logprobs}}
        choices = [choice | {"index": index} for index in range(self._body.get("n", 1))]
        return {**self._head, "choices": choices, "usage": self._usage, "prompt_logprobs": None}

    async def events(self) -> AsyncIterator[bytes]:
        done = False
        options = self._body.get("stream_options") or {}
        self._simulator.running += 1
        try:
            for place in range(len(self._tokens)):
                await asyncio.sleep(self._pause)
                if self._dies and place == 2:
                    os._exit(1)
                last = place == len(self._tokens) - 1
                reason = ("tool_calls" if self._calls else self._reason) if last else None
                choice = {"index": 0, "logprobs": None, "finish_reason": reason, **self._piece(place, last=last)}
                chunk = {**self._head, "choices": [choice]}
                if options.get("include_usage") and options.get("continuous_usage_stats"):
                    made = {"completion_tokens": place + 1, "total_tokens": self._usage["prompt_tokens"] + place + 1}
                    chunk["usage"] = self._usage | made
                yield _event(chunk)
            if options.get("include_usage"):
                yield _event({**self._head, "choices": [], "usage": self._usage})
            yield b"data: [DONE]\n\n"
            done = True
        finally:
            self._simulator.running -= 1
            self._simulator.aborted += not done

    def _piece(self, place: int, *, last: bool) -> dict[str, Any]:
        """What one event brings: a token, or the part of a call to the first tool that falls on it."""
        token = self._tokens[place]
        if not self._calls:
            return {"delta": {"content": f"{token} "}} if self._is_chat else {"text": f"{token} "}
        begin, end = '{"said": "' if place == 0 else " ", '"}' if last else ""
        call: dict[str, Any] = {"index": 0, "function": {"arguments": f"{begin}{token}{end}"}}
        if place == 0:
            call |= {"id": "chatcmpl-tool-1", "type": "function"}
            call["function"]["name"] = self._body["tools"][0]["function"]["name"]
        return {"delta": {"content": None, "tool_calls": [call]}}


def _text_of(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _error(status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)


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
