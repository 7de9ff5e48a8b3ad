"""Owns what was said in a capture: how it lies in object storage, what prompts are equal, the row it is to train on.

It must not know SQL or transports; everything here is pure.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith_server.files.dataset_check import check_dataset

CAPTURES_FOLDER = "captures"


@dataclass(frozen=True, slots=True)
class Content:
    """Messages, tools and answer in the shape of OpenAI's clients."""

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]]
    answer: dict[str, Any]


def storage_key(project_id: str, capture_id: str) -> str:
    """Where the content lies."""
    return f"{CAPTURES_FOLDER}/{project_id}/{capture_id}"


def encoded(content: Content) -> bytes:
    """The object's bytes."""
    return _json({"messages": content.messages, "tools": content.tools, "answer": content.answer})


def decoded(stored: bytes) -> Content:
    """What `encoded` made bytes of."""
    return Content(**json.loads(stored))


def prompt_sha256(content: Content) -> str:
    """Hex digest of messages and tools, the same for the same prompt however its keys are ordered."""
    return hashlib.sha256(_json([content.messages, content.tools], sort_keys=True)).hexdigest()


def training_line(content: Content) -> bytes | None:
    """The capture as a line of a dataset; None where the check of datasets would refuse it.

    The captured answer is what is learnt: earlier ones in the conversation get the weight 0.
    """
    earlier = [
        message | {"weight": 0} if message.get("role") == "assistant" else message for message in content.messages
    ]
    row: dict[str, Any] = {"messages": [*earlier, content.answer]}
    if content.tools:
        row["tools"] = content.tools
    line = _json(row) + b"\n"
    return None if check_dataset(io.BytesIO(line)).problem_count else line


def _json(value: object, *, sort_keys: bool = False) -> bytes:
    """Keys stay in their order: templates write tools in it, so that sorted ones would be another prompt."""
    return json.dumps(value, sort_keys=sort_keys, separators=(",", ":")).encode("ascii")
