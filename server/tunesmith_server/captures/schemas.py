"""Owns the REST shapes of captures: OpenAI's stored chat completions, and the datasets that are made of them.

It must not know rows. Times are Unix seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tunesmith_server.files.schemas import FileObject
from tunesmith_server.metadata import check_metadata

MAX_DATASET_ROWS = 50_000

Metadata = Annotated[dict[str, str], AfterValidator(check_metadata)]
Seconds = Annotated[int, Field(ge=0, le=2**53, strict=True)]
ModelName = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]


class AnswerMessage(BaseModel):
    """What the model said."""

    model_config = ConfigDict(extra="allow")

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class CapturedChoice(BaseModel):
    """The one answer that is kept."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: str
    logprobs: None = None


class CapturedUsage(BaseModel):
    """Tokens of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletionObject(BaseModel):
    """A chat completion as it was answered; `messages` of the request have a route of their own."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    request_id: str
    choices: list[CapturedChoice]
    usage: CapturedUsage
    tools: list[dict[str, Any]] | None
    metadata: dict[str, str]


class ChatCompletionPage(BaseModel):
    """A page of captures."""

    object: Literal["list"] = "list"
    data: list[ChatCompletionObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class StoredMessage(BaseModel):
    """A message of the request; one that came in parts has `content_parts` in the place of `content`."""

    model_config = ConfigDict(extra="allow")

    id: str
    role: str
    content: str | None
    refusal: str | None = None
    content_parts: list[dict[str, Any]] | None


class StoredMessagePage(BaseModel):
    """A page of messages."""

    object: Literal["list"] = "list"
    data: list[StoredMessage]
    first_id: str | None
    last_id: str | None
    has_more: bool


class UpdateChatCompletion(BaseModel):
    """The body of POST /v1/chat/completions/{id}: metadata in the place of those it had."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metadata: Metadata | None


class DeletedChatCompletion(BaseModel):
    """What is left of a deleted capture."""

    id: str
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: Literal[True] = True


class CreateDataset(BaseModel):
    """The body of POST /v1/capture_datasets: which captures, of those the newest `limit`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filename: Annotated[str, Field(min_length=1, max_length=255)] = "captures.jsonl"
    model: ModelName | None = None
    since: Seconds | None = None
    until: Seconds | None = None
    """Exclusive."""
    metadata: Metadata = Field(default_factory=dict)
    limit: Annotated[int, Field(ge=1, le=MAX_DATASET_ROWS, strict=True)] = 10_000
    deduplicate: Annotated[bool, Field(strict=True)] = True
    """Of equal prompts only the newest answer."""


class DatasetObject(FileObject):
    """A file to fine-tune with, and what was made of the captures."""

    rows: int
    duplicates: int
    """Left out because a newer capture answers the same prompt."""
    unusable: int
    """Left out because the check of datasets refuses them."""
