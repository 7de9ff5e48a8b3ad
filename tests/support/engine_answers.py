"""Owns what the engine simulator says: tokens that depend on prompt and weights, in vLLM's bodies and refusals.

It must not know processes, routes or adapters. Made to choose a tool, it calls the first one; asked for a form, it
fills it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

CONTEXT = 2048
"""The longest prompt, in tokens."""
VERSION = "0.32.0"

_VOCABULARY = 256
_MAX_LOGPROBS = 21
_READ_SECONDS = 0.1
"""Between what an engine said and its death: a gateway that reads both at once hears of the death alone."""
_CORE_DIED = "EngineCore encountered an issue. See stack trace (above) for the root cause."


_WRONG_TYPE: dict[str, Callable[[Any], bool]] = {
    "logit_bias": lambda value: not isinstance(value, dict),
    "stop": lambda value: not isinstance(value, (str, list)),
    "seed": lambda value: not isinstance(value, int),
    "response_format.type": lambda value: value not in ("text", "json_object", "json_schema", "structural_tag"),
}
_OUT_OF_RANGE: dict[str, tuple[Callable[[Any], bool], bool]] = {
    "temperature": (lambda value: not 0 <= value <= 2, True),
    "top_p": (lambda value: not 0 < value <= 1, True),
    "max_tokens": (lambda value: value < 1, True),
    "frequency_penalty": (lambda value: not -2 <= value <= 2, False),
    "presence_penalty": (lambda value: not -2 <= value <= 2, False),
    "n": (lambda value: value < 1, False),
}
"""By parameter: what is refused, and whether the engine names the parameter then."""


@dataclass(slots=True)
class Work:
    """What an engine works on."""

    running: int = 0
    aborted: int = 0
    core_died: bool = False


def greedy(weights: str, prompt: Sequence[int], tokens: int) -> tuple[list[int], list[float]]:
    """The tokens and log-probabilities with which a model of these weights answers; "" is the base model."""
    seed = hashlib.sha256(f"{weights}|{list(prompt)}".encode()).digest()
    return [seed[i % 32] for i in range(tokens)], [-seed[(i + 7) % 32] / 256 for i in range(tokens)]


def tokenized(text: str) -> list[int]:
    """The simulator's tokenizer: one token a word."""
    return [sum(word.encode()) % _VOCABULARY for word in text.split()]


async def answer(
    work: Work, request: Request, body: dict[str, Any], prompts: list[Any], weights: str, *, is_chat: bool
) -> Response:
    """What a model of these weights says to prompts, texts or token ids; `body` is the request's."""
    refusal = _refusal(body, prompts)
    if refusal is not None:
        return refusal
    asked = [prompt for prompt in prompts for _ in range(body.get("n", 1))]
    choices = [_choice(index, body, weights, prompt) for index, prompt in enumerate(asked)]
    made = _Answer(work, body, prompts, choices, is_chat=is_chat)
    if body.get("stream"):
        return StreamingResponse(made.events(), media_type="text/event-stream")
    return await made.whole(request)


def malformed(path: str) -> Response:
    """What a body is told that does not fit the engine's schema."""
    return refused(400, "1 validation error:\n  ...", "Bad Request", f"body.{path}")


def refused(status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> Response:
    """An error as the engine words it."""
    return JSONResponse(_error_body(status, message, kind, param), status)


def _refusal(body: dict[str, Any], prompts: list[Any]) -> Response | None:
    """What the engine says to a body that it does not take."""
    for path, is_wrong in _WRONG_TYPE.items():
        name, _, inner = path.partition(".")
        if name in body and is_wrong(body[name].get(inner) if inner else body[name]):
            return malformed(path)
    for name, (is_out, is_named) in _OUT_OF_RANGE.items():
        if name in body and is_out(body[name]):
            message = f"{name} must be in its range, got {body[name]}."
            return refused(400, message, param=name if is_named else None)
    if body.get("n", 1) > 1 and body.get("temperature") == 0:
        return refused(400, f"n must be 1 when using greedy sampling, got {body['n']}.")
    if "top_logprobs" in body and not body.get("logprobs"):
        message = "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)"
        return refused(400, message, param="top_logprobs")
    if max(body.get("top_logprobs", 0), body.get("logprobs", 0)) > _MAX_LOGPROBS:
        message = f"Requested sample logprobs of more than max allowed: {_MAX_LOGPROBS} (parameter=logprobs)"
        return refused(400, message, param="logprobs")
    if "suffix" in body:
        return refused(400, "suffix is only supported for models with FIM completion rendering", param="suffix")
    return _tool_refusal(body) or _prompt_refusal(body, prompts)


def _tool_refusal(body: dict[str, Any]) -> Response | None:
    choice = body.get("tool_choice", "none" if "tools" not in body else "auto")
    if choice != "none" and not body.get("tools"):
        message = "When using `tool_choice`, `tools` must be set. (parameter=tool_choice)"
        return refused(400, message, param="tool_choice")
    names = [tool["function"]["name"] for tool in body.get("tools", ())]
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        message = "The tool specified in `tool_choice` does not match any of the specified `tools`"
        return refused(400, message, param="tool_choice")
    return None


def _prompt_refusal(body: dict[str, Any], prompts: list[Any]) -> Response | None:
    for prompt in prompts:
        tokens = _tokens(prompt)
        if not prompt:
            message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
            return refused(400, message, param="prompt")
        if any(token >= _VOCABULARY for token in tokens):
            return refused(400, f"Token id {max(tokens)} is out of vocabulary")
        if len(tokens) > CONTEXT:
            message = f"This model's maximum context length is {CONTEXT} tokens. Yours has {len(tokens)}."
            return refused(400, message, param="input_text" if isinstance(prompt, str) else "input_tokens")
        limit = _limit(body, "")
        if limit > CONTEXT and "fault:long" not in str(prompt):
            message = f"max_tokens={limit} cannot be greater than max_model_len={CONTEXT}. Please request fewer."
            return refused(400, message, param="max_tokens")
    return None


@dataclass(frozen=True, slots=True)
class _Choice:
    """One answer to one prompt: its pieces are its text, or the arguments of its call."""

    index: int
    prompt: Any
    pieces: list[str]
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str
    stop_reason: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def _choice(index: int, body: dict[str, Any], weights: str, prompt: Any) -> _Choice:
    tokens, logprobs = greedy(weights, _tokens(prompt), _limit(body, str(prompt)))
    text = " ".join(map(str, tokens))
    form, reason = _form(body)
    stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop", [])
    found = min((stop for stop in stops if stop in text), key=text.index, default=None)
    if form is not None:
        text = json.dumps(_filled(form, text))
    elif found is not None:
        text, reason = text[: text.index(found)], "stop"
    pieces = re.findall(r"\s*\S+", text)
    if form is not None:
        # The name of a call comes first; the token that ends an answer says nothing.
        pieces = [*([""] if _calls(body) else []), *pieces, ""]
    if body.get("echo"):
        pieces = [str(prompt), *pieces]
    return _Choice(index, prompt, pieces, tokens, logprobs, reason, found if form is None else None)


def _form(body: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The schema that an answer must fit, if any, and how it ends."""
    if _calls(body):
        named = isinstance(body["tool_choice"], dict)
        return body["tools"][0]["function"].get("parameters", {}), "stop" if named else "tool_calls"
    wanted = body.get("response_format", {})
    if wanted.get("type") == "json_schema":
        return wanted["json_schema"]["schema"], "stop"
    if wanted.get("type") == "structural_tag":
        return wanted["format"]["json_schema"], "stop"
    return None, "length"


def _calls(body: dict[str, Any]) -> bool:
    return bool(body.get("tools")) and body.get("tool_choice", "auto") not in ("auto", "none")


def _filled(schema: dict[str, Any], text: str) -> Any:
    """Something that fits the schema, with `text` in its texts."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type", "object") == "object":
        properties = schema.get("properties") or {"said": {"type": "string"}}
        return {name: _filled(inner, text) for name, inner in properties.items()}
    return {"string": text, "array": [], "integer": 0, "number": 0, "boolean": False}.get(schema["type"])


def _limit(body: dict[str, Any], text: str) -> int:
    limit: int = body.get("max_completion_tokens") or body.get("max_tokens") or (10_000 if "fault:long" in text else 16)
    return limit


def _tokens(prompt: Any) -> list[int]:
    return tokenized(prompt) if isinstance(prompt, str) else list(prompt or ())


class _Answer:
    """One answer, whole or as events."""

    def __init__(
        self,
        work: Work,
        body: dict[str, Any],
        prompts: list[Any],
        choices: list[_Choice],
        *,
        is_chat: bool,
    ) -> None:
        text = str(prompts)
        self._work = work
        self._body = body
        self._choices = choices
        self._is_chat = is_chat
        self._pause = 0.05 if "fault:slow" in text or "fault:long" in text else 0.0
        self._dies = "fault:die" in text
        self._prompt_tokens = sum(len(_tokens(prompt)) for prompt in prompts)
        kind = "chat.completion" if is_chat else "text_completion"
        kind += ".chunk" if is_chat and body.get("stream") else ""
        begin = "chatcmpl" if is_chat else "cmpl"
        self._head = {
            "id": f"{begin}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": body["model"],
        }

    async def whole(self, request: Request) -> Response:
        self._work.running += 1
        try:
            for _ in self._choices[0].pieces if self._pause else ():
                await asyncio.sleep(self._pause)
                if self._work.core_died:
                    break
                if await request.is_disconnected():
                    self._work.aborted += 1
                    break
        finally:
            self._work.running -= 1
        if self._work.core_died:
            return refused(500, _CORE_DIED, "InternalServerError")
        nothing = ["service_tier", "kv_transfer_params", "ec_transfer_params", "metrics"]
        nothing += ["prompt_logprobs", "prompt_token_ids", "prompt_text"] if self._is_chat else []
        usage = self._usage(sum(len(choice.pieces) for choice in self._choices))
        usage |= {"prompt_tokens_details": None, "completion_tokens_details": None}
        answer = {**self._head, "choices": [self._told(choice) for choice in self._choices], "usage": usage}
        return JSONResponse(answer | dict.fromkeys(nothing) | {"system_fingerprint": f"vllm-{VERSION}"})

    async def events(self) -> AsyncIterator[bytes]:
        done = False
        self._work.running += 1
        try:
            for chunk in self._begin() if self._is_chat else ():
                yield chunk
            longest = max(len(choice.pieces) for choice in self._choices)
            for place in range(longest):
                await asyncio.sleep(self._pause)
                if self._dies and place == 2:
                    await asyncio.sleep(_READ_SECONDS)
                    os._exit(1)
                if self._work.core_died:
                    yield _event(_error_body(500, _CORE_DIED, "InternalServerError"))
                    break
                for choice in self._choices:
                    if place < len(choice.pieces):
                        yield self._chunk(choice, place)
            else:
                if self._options.get("include_usage"):
                    made = sum(len(choice.pieces) for choice in self._choices)
                    last = {"choices": [], "usage": self._usage(made), "system_fingerprint": f"vllm-{VERSION}"}
                    yield _event({**self._head, **last})
            yield b"data: [DONE]\n\n"
            done = True
        finally:
            self._work.running -= 1
            self._work.aborted += not done

    @property
    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = self._body.get("stream_options") or {}
        return options

    def _usage(self, made: int) -> dict[str, Any]:
        total = self._prompt_tokens + made
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": made, "total_tokens": total}

    def _told(self, choice: _Choice) -> dict[str, Any]:
        """A choice of a whole answer."""
        told = {"index": choice.index, "finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}
        told |= {"token_ids": None, "routed_experts": None, "logprobs": self._logprobs(choice, 0, len(choice.pieces))}
        if not self._is_chat:
            told |= {"text": choice.text, "prompt_logprobs": None, "prompt_token_ids": None}
            if self._body.get("return_token_ids"):
                told |= {"token_ids": choice.tokens, "prompt_token_ids": _tokens(choice.prompt)}
            return told
        message: dict[str, Any] = {"role": "assistant", "content": choice.text}
        message |= dict.fromkeys(["refusal", "annotations", "audio", "function_call", "reasoning"])
        if _calls(self._body):
            function = {"name": self._body["tools"][0]["function"]["name"], "arguments": choice.text}
            call = {"id": "chatcmpl-tool-1", "type": "function", "function": function}
            message |= {"content": "", "tool_calls": [call]}
        return told | {"message": message}

    def _begin(self) -> list[bytes]:
        """The chunk with which each choice of a streamed chat begins."""
        nothing = {"prompt_token_ids": None, "prompt_text": None}
        opened = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        usage = {"usage": self._usage(0) | {"completion_tokens_details": None}} if self._continuous else {}
        chunks = [{"choices": [{"index": choice.index, **opened}], **nothing, **usage} for choice in self._choices]
        return [_event({**self._head, **chunk}) for chunk in chunks]

    @property
    def _continuous(self) -> bool:
        return bool(self._options.get("include_usage") and self._options.get("continuous_usage_stats"))

    def _chunk(self, choice: _Choice, place: int) -> bytes:
        """One piece of one choice."""
        last = place == len(choice.pieces) - 1
        told: dict[str, Any] = {
            "index": choice.index,
            "logprobs": self._logprobs(choice, place, place + 1),
            "token_ids": None,
        }
        told["finish_reason"] = choice.finish_reason if last else None
        if last or not self._is_chat:
            told["stop_reason"] = choice.stop_reason if last else None
        told |= (
            self._piece(choice, place) if self._is_chat else {"text": choice.pieces[place], "prompt_token_ids": None}
        )
        chunk: dict[str, Any] = {**self._head, "choices": [told]}
        if last and not self._options.get("include_usage"):
            chunk["system_fingerprint"] = f"vllm-{VERSION}"
        if self._continuous:
            chunk["usage"] = self._usage(place + 1) | ({"completion_tokens_details": None} if self._is_chat else {})
        return _event(chunk)

    def _piece(self, choice: _Choice, place: int) -> dict[str, Any]:
        """What a chunk brings of a chat: a text, or the part of a call that falls on it."""
        piece = choice.pieces[place]
        if place and not piece:
            return {"delta": {}}
        if not _calls(self._body):
            return {"delta": {"content": piece}}
        call: dict[str, Any] = {"index": 0, "function": {"arguments": piece}}
        if place == 0:
            name = {"name": self._body["tools"][0]["function"]["name"]}
            call = {"id": "chatcmpl-tool-1", "type": "function", "index": 0, "function": name}
        return {"delta": {"content": None, "tool_calls": [call]}}

    def _logprobs(self, choice: _Choice, begin: int, end: int) -> dict[str, Any] | None:
        """Those of so many pieces, where they are asked for."""
        if not (self._body.get("logprobs") if self._is_chat else "logprobs" in self._body):
            return None
        texts, values = choice.pieces[begin:end], choice.logprobs[begin:end]
        if not self._is_chat:
            offsets = [len("".join(choice.pieces[:place])) for place in range(begin, end)]
            tops = [{text: value} for text, value in zip(texts, values, strict=False)]
            return {"text_offset": offsets, "token_logprobs": values, "tokens": texts, "top_logprobs": tops}
        told = [_logprob(text, value) for text, value in zip(texts, values, strict=False)]
        return {"content": [each | {"top_logprobs": [each] * self._body.get("top_logprobs", 0)} for each in told]}


def _logprob(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _error_body(status: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
