"""`client.captures`, and the requests that it makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_answers import json_answer
from tests.support.fake_api import API_KEY
from tests.support.loopback_http import Answer, LoopbackServer, Received
from tunesmith import AsyncTunesmith, Tunesmith

CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


class Captures:
    """Answers as the server does for three captures; `calls` are the methods, paths, queries and bodies that came."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, str], object]] = []

    def respond(self, request: Received) -> Answer:
        """One answer."""
        body: Any = request.json if request.body else None
        self.calls.append((request.method, request.path, dict(request.query), body))
        if request.path == "/v1/capture_datasets":
            counts = {"rows": 3, "duplicates": 1, "unusable": 0}
            file = {"id": "file-1", "bytes": 9, "created_at": 1, "filename": "captures.jsonl", "purpose": "fine-tune"}
            return json_answer({**file, "status": "processed", **counts})
        if request.path == "/v1/chat/completions":
            numbers = [1, 2] if "after" not in request.query else [3]
            data = [capture(number) for number in numbers]
            return json_answer({"object": "list", "data": data, "has_more": numbers == [1, 2]})
        if request.path.endswith("/messages"):
            parts = [{"type": "text", "text": "Add"}, {"type": "text", "text": "one."}]
            messages = [
                {"id": "chatcmpl-1-0", "role": "system", "content": "Be brief.", "content_parts": None},
                {"id": "chatcmpl-1-1", "role": "user", "content": None, "content_parts": parts},
            ]
            return json_answer({"object": "list", "data": messages, "has_more": False})
        if request.method == "DELETE":
            return json_answer({"id": "chatcmpl-1", "object": "chat.completion.deleted", "deleted": True})
        return json_answer(capture(1) | (body or {}))


def capture(number: int) -> dict[str, Any]:
    """One capture as the server shows it."""
    message = {"role": "assistant", "content": "Sure.", "refusal": None, "tool_calls": [CALL]}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "request_id": "req_1",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        "tools": None,
        "metadata": {"team": "a"},
    }


@pytest.fixture
def server() -> Iterator[tuple[Captures, str]]:
    """What answers, and where."""
    captures = Captures()
    listening = LoopbackServer(0, captures.respond)
    yield captures, f"http://127.0.0.1:{listening.port}"
    listening.stop()


def test_captures_are_read_changed_and_deleted(server: tuple[Captures, str]) -> None:
    captures, url = server
    with Tunesmith(base_url=url, api_key=API_KEY) as client:
        listed = client.captures.list(model="m", metadata={"team": "a"}, limit=2)
        assert [each.id for each in listed] == ["chatcmpl-1", "chatcmpl-2", "chatcmpl-3"]
        assert client.captures.retrieve("chatcmpl-1").choices[0].message.tool_calls == [CALL]
        assert [message.content for message in client.captures.messages("chatcmpl-1")] == ["Be brief.", None]
        assert client.captures.update("chatcmpl-1", metadata={"good": "yes"}).metadata == {"good": "yes"}
        assert client.captures.delete("chatcmpl-1").deleted
    first = {"model": "m", "order": "asc", "limit": "2", "metadata[team]": "a"}
    assert [call[2] for call in captures.calls[:2]] == [first, first | {"after": "chatcmpl-2"}]
    assert captures.calls[4][3] == {"metadata": {"good": "yes"}}


async def test_a_dataset_is_a_file(server: tuple[Captures, str]) -> None:
    captures, url = server
    async with AsyncTunesmith(base_url=url, api_key=API_KEY) as client:
        made = await client.captures.create_dataset(model="m", since=5, metadata={}, deduplicate=False)
        assert (made.id, made.rows, made.duplicates) == ("file-1", 3, 1)
        await client.captures.create_dataset()
        assert len([each async for each in client.captures.list()]) == 3
    assert [call[3] for call in captures.calls[:2]] == [
        {"model": "m", "since": 5, "metadata": {}, "deduplicate": False},
        {},
    ]
