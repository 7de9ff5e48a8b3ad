"""Owns the shape of golden.json: what a run recorded so that an engine can be proven to serve the same weights.

It must not know how the proof is done; everything here is pure.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tunesmith_server.errors import Problem

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
LogProbability = Annotated[float, Field(le=1e-3, allow_inf_nan=False)]
"""Natural logarithm; rounding may lift it a little above zero."""


class GoldenPrompt(BaseModel):
    """One prompt with the greedy continuations of the tuned and the base model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=4096)]
    token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=64)]
    logprobs: list[LogProbability]
    base_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=64)]
    base_logprobs: list[LogProbability]

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if len(self.token_ids) != len(self.logprobs) or len(self.base_token_ids) != len(self.base_logprobs):
            raise ValueError("every token needs one log-probability")
        return self


class CompletionFrame(BaseModel):
    """What a prompt of /v1/completions is to stand in, where prompts were learnt as questions in a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    before: Annotated[str, Field(max_length=100_000)]
    after: Annotated[str, Field(max_length=100_000)]
    trimmed: bool


class Golden(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dtype: Literal["float32", "bfloat16", "float16"]
    prompts: Annotated[list[GoldenPrompt], Field(min_length=1, max_length=16)]
    completion_frame: CompletionFrame | None = None


def golden_problems(content: bytes) -> list[Problem]:
    """All that is wrong with the bytes of a golden.json."""
    try:
        Golden.model_validate_json(content)
    except ValidationError as error:
        return [
            Problem("golden_invalid", f"golden.json: {'.'.join(str(part) for part in item['loc'])}: {item['msg']}.")
            for item in error.errors(include_input=False, include_url=False)[:10]
        ]
    return []
