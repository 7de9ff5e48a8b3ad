"""Owns the proof before traffic: an engine must reproduce what runs recorded, alone and beside what it serves.

It must not know how an adapter gets into an engine, or what follows from a failed proof.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tunesmith_inference.completion_frame import CompletionFrame
from tunesmith_inference.vllm import Completion

TOLERANCES = {"float32": 0.01, "float16": 0.15, "bfloat16": 1.0}
"""Largest difference of a token's log-probability, by the coarser of the run's and the engine's dtype.

In bfloat16 single tokens were seen 0.53 off what the model gives in float32 (SmolLM2-135M); float16 rounds to eighths.
"""

_MAX_GOLDEN_BYTES = 4 * 1024 * 1024
_NOISE = 0.01
"""The share of a tolerance by which the same computation may differ when it is done in another batch."""

TokenId = Annotated[int, Field(ge=0)]
Complete = Callable[[str, Sequence[int], int], Awaitable[Completion]]
"""(engine's model name, prompt token ids, number of tokens) → greedy answer; raises ValueError when refused."""


class ProofFailed(Exception):
    """The engine does not serve what was trained; the text says where it differs."""


class GoldenPrompt(BaseModel):
    """A prompt with the greedy answers of the tuned and of the base model, as the run computed them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt_token_ids: Annotated[list[TokenId], Field(min_length=1)]
    token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=64)]
    logprobs: list[float]
    base_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=64)]
    base_logprobs: list[float]

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if len(self.token_ids) != len(self.logprobs) or len(self.base_token_ids) != len(self.base_logprobs):
            raise ValueError("every token needs one log-probability")
        return self


class Golden(BaseModel):
    """golden.json."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    dtype: Literal["float32", "float16", "bfloat16"]
    prompts: Annotated[list[GoldenPrompt], Field(min_length=1, max_length=16)]
    completion_frame: CompletionFrame | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An adapter that is proven already: its name in the engine, and a prompt that it must go on answering."""

    model: str
    prompt: GoldenPrompt
    tolerance: float


def read_golden(folder: Path) -> Golden:
    """The record in a revision's folder; raises ProofFailed when there is none to hold the engine against."""
    path = folder / "golden.json"
    try:
        if path.stat().st_size > _MAX_GOLDEN_BYTES:
            raise ProofFailed("golden.json is too large")
        return Golden.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ProofFailed("golden.json is missing or has another shape") from error


async def prove(
    complete: Complete,
    golden: Golden,
    tuned: str,
    base: str | None,
    engine_dtype: str,
    beside: Sequence[Neighbour] = (),
) -> Neighbour:
    """Replays the shortest prompt alone on `tuned`, then all at once on `tuned`, `base` and the adapters `beside` it.

    `base` is None where the tuned model has an engine of its own. Returns what the tuned model is held against when it
    is beside others; raises ProofFailed, whose text says which of the models differs.
    """
    tolerance = max(TOLERANCES[golden.dtype], TOLERANCES[engine_dtype])
    shortest = min(golden.prompts, key=lambda prompt: len(prompt.prompt_token_ids))
    await _replay(complete, shortest, tuned, tolerance)
    replays = [_replay(complete, prompt, tuned, tolerance) for prompt in golden.prompts]
    if base is not None:
        replays += [_replay_base(complete, prompt, base, tolerance) for prompt in golden.prompts]
    replays += [check(complete, neighbour) for neighbour in beside]
    # All are waited for: none goes on in the engine when the adapter is unloaded.
    answers = await asyncio.gather(*replays, return_exceptions=True)
    sound = [_sound(answer) for answer in answers]
    if base is not None:
        _check_moved(golden, sound, tolerance)
    return Neighbour(tuned, shortest, tolerance)


async def check(complete: Complete, neighbour: Neighbour) -> Completion:
    """Replays the prompt of an adapter that was proven before; raises ProofFailed."""
    prompt = neighbour.prompt
    answer = await _completed(complete, neighbour.model, prompt.prompt_token_ids, len(prompt.token_ids))
    _compare(f"adapter {neighbour.model}", answer, prompt.token_ids, prompt.logprobs, neighbour.tolerance)
    return answer


async def _replay(complete: Complete, prompt: GoldenPrompt, model: str, tolerance: float) -> Completion:
    answer = await _completed(complete, model, prompt.prompt_token_ids, len(prompt.token_ids))
    _compare("tuned model", answer, prompt.token_ids, prompt.logprobs, tolerance)
    return answer


async def _replay_base(complete: Complete, prompt: GoldenPrompt, model: str, tolerance: float) -> Completion:
    answer = await _completed(complete, model, prompt.prompt_token_ids, len(prompt.base_token_ids))
    _compare("base model beside it", answer, prompt.base_token_ids, prompt.base_logprobs, tolerance)
    return answer


async def _completed(complete: Complete, model: str, prompt: Sequence[int], tokens: int) -> Completion:
    try:
        return await complete(model, prompt, tokens)
    except ValueError as error:
        raise ProofFailed(str(error)) from error


def _sound(answer: Completion | BaseException) -> Completion:
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _check_moved(golden: Golden, answers: Sequence[Completion], tolerance: float) -> None:
    """Refuses a tuned model that answers like the base model throughout though the record tells them apart.

    Without this, prompts whose first tokens are about equally likely would let an adapter pass that is not applied at
    all. `answers` are the tuned model's, then the base model's.
    """
    count = len(golden.prompts)
    recorded = any(
        _apart(
            Completion(prompt.token_ids, prompt.logprobs),
            Completion(prompt.base_token_ids, prompt.base_logprobs),
            tolerance,
        )
        for prompt in golden.prompts
    )
    seen = any(
        _apart(tuned, base, tolerance * _NOISE)
        for tuned, base in zip(answers[:count], answers[count : 2 * count], strict=True)
    )
    if recorded and not seen:
        raise ProofFailed("the tuned model answers every prompt as the base model does, which the run's did not")


def _apart(one: Completion, other: Completion, tolerance: float) -> bool:
    """Whether two answers have other tokens, or log-probabilities that differ by more than `tolerance`."""
    return list(one.token_ids) != list(other.token_ids) or any(
        abs(mine - theirs) > tolerance for mine, theirs in zip(one.logprobs, other.logprobs, strict=True)
    )


def _compare(what: str, answer: Completion, tokens: Sequence[int], logprobs: Sequence[float], tolerance: float) -> None:
    """Holds an answer against the record, token by token.

    Where two tokens are equally likely within the tolerance, either may win; what follows then has nothing to compare.
    """
    for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        if place >= len(answer.token_ids):
            raise ProofFailed(f"the {what} stopped after {place} tokens")
        difference = abs(answer.logprobs[place] - logprob)
        if not math.isfinite(difference) or difference > tolerance:
            raise ProofFailed(
                f"the {what} gives token {place} a log-probability {difference:.4f} off the run's "
                f"(allowed: {tolerance})"
            )
        if answer.token_ids[place] != token:
            return
