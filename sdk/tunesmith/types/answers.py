"""Owns the shapes of what models answer, and of the answers that were kept.
Must not know how they travel.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tunesmith.types.fine_tuning import File
from tunesmith.types.wire import Identified, WireModel


class Usage(WireModel):
    """Tokens of one answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatMessage(WireModel):
    """What the model said; may be appended to the messages of the next request."""

    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(WireModel):
    """One of the answers asked for."""

    index: int
    message: ChatMessage
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class ChatCompletion(Identified):
    """A whole answer to a conversation."""

    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class Capture(ChatCompletion):
    """A chat completion that was kept, its answer in `choices`."""

    request_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


class CapturedMessage(Identified):
    """A message of the request; one that was sent in parts has `content_parts` in the place of `content`."""

    role: str
    content: str | None = None
    content_parts: list[dict[str, Any]] | None = None


class CaptureDataset(File):
    """A file to fine-tune with that was made of captures."""

    rows: int
    duplicates: int
    """Captures left out because a newer one answers the same prompt."""
    unusable: int
    """Captures left out because the check of datasets refuses them."""


class ChatDelta(WireModel):
    """What a chunk adds to the message."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChunkChoice(WireModel):
    """One answer's part of a chunk."""

    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class ChatCompletionChunk(Identified):
    """A piece of a streamed answer; the last may have usage and no choices."""

    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(WireModel):
    """One of the continuations asked for, or a streamed piece of one."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class Completion(Identified):
    """A continuation of a prompt; streams consist of the same shape."""

    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
