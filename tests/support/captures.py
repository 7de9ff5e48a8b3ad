"""Owns captures as a gateway reports them, for tests of what is done with them."""

from __future__ import annotations

from typing import Any

from tunesmith_server.captures.content import Content
from tunesmith_server.captures.service import NewCapture

ASKED = [{"role": "user", "content": "What is 2+2?"}]
ANSWER = {"role": "assistant", "content": "4"}


def capture(number: int, asked: str = "", **changes: Any) -> NewCapture:
    """The capture `chatcmpl-<number>` of the project `default`; `asked` is what the user says in it.

    `messages`, `tools` and `answer` change what was said, other names what is known of it.
    """
    content = Content(
        changes.pop("messages", [{"role": "user", "content": asked or f"What is 2+{number}?"}]),
        changes.pop("tools", []),
        changes.pop("answer", {"role": "assistant", "content": str(number + 2)}),
    )
    known: dict[str, Any] = {
        "id": f"chatcmpl-{number}",
        "project_id": "default",
        "key_id": "key_1",
        "model": "toy",
        "created": 1_000 + number,
        "request_id": "req_1",
        "metadata": {},
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "completion_tokens": 1,
    }
    return NewCapture(**(known | changes), content=content)
