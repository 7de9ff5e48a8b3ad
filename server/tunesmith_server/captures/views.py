"""Owns how captures look over REST.

It must not know routes or rules.
"""

from __future__ import annotations

from typing import Any

from tunesmith_server.captures.content import Content
from tunesmith_server.captures.schemas import (
    AnswerMessage,
    CapturedChoice,
    CapturedUsage,
    ChatCompletionObject,
    StoredMessage,
)
from tunesmith_server.db.tables import CaptureRow


def chat_completion(row: CaptureRow, content: Content) -> ChatCompletionObject:
    """A capture as the chat completion that it was."""
    return ChatCompletionObject(
        id=row.id,
        created=row.created_at,
        model=row.model,
        request_id=row.request_id,
        choices=[CapturedChoice(message=AnswerMessage(**content.answer), finish_reason=row.finish_reason)],
        usage=CapturedUsage(
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            total_tokens=row.prompt_tokens + row.completion_tokens,
        ),
        tools=list(content.tools) or None,
        metadata=row.user_metadata,
    )


def stored_messages(capture_id: str, content: Content) -> list[StoredMessage]:
    """The messages of the request, with ids that count them."""
    return [_message(f"{capture_id}-{place}", message) for place, message in enumerate(content.messages)]


def _message(message_id: str, message: dict[str, Any]) -> StoredMessage:
    said = message.get("content")
    in_parts = isinstance(said, list)
    shown = {"content": None if in_parts else said, "content_parts": said if in_parts else None}
    return StoredMessage(**(message | shown | {"id": message_id}))
