"""Captures as the official client reads them: OpenAI's stored chat completions."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.support import asgi_server
from tests.support.administration import Installation
from tests.support.captures import capture
from tunesmith_server.captures.service import CapturesService

PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


async def test_the_official_client_reads_changes_and_deletes_them(each_installation: Installation) -> None:
    asked = [{"role": "system", "content": "Count."}, {"role": "user", "content": PARTS}]
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    reports = [capture(number, metadata={"n": str(number % 2)}) for number in range(5)]
    reports.append(capture(9, messages=asked, answer=called, finish_reason="tool_calls", model="other"))
    await CapturesService(each_installation.core).take(reports)
    key = await each_installation.key("captures.read", "captures.write")
    async with (
        asgi_server.serving(each_installation.application.http) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as sdk,
    ):
        stored = sdk.chat.completions
        assert [each.id async for each in stored.list(limit=2)] == [report.id for report in reports]
        odd = [each.id async for each in stored.list(metadata={"n": "1"}, order="desc")]
        assert odd == ["chatcmpl-3", "chatcmpl-1"]
        (other,) = [each async for each in stored.list(model="other")]
        assert other == await stored.retrieve("chatcmpl-9")
        assert other.choices[0].message.tool_calls[0].to_dict() == CALL  # type: ignore[index]  # it has calls
        assert (other.choices[0].finish_reason, other.usage.total_tokens) == ("tool_calls", 6)  # type: ignore[union-attr]
        messages = [each async for each in stored.messages.list("chatcmpl-9", limit=1)]
        assert [(each.id, each.content) for each in messages] == [("chatcmpl-9-0", "Count."), ("chatcmpl-9-1", None)]
        assert [part.to_dict() for part in messages[1].content_parts or ()] == PARTS
        assert (await stored.update("chatcmpl-9", metadata={"good": "yes"})).metadata == {"good": "yes"}
        assert (await stored.delete("chatcmpl-9")).deleted
        with pytest.raises(openai.NotFoundError):
            await stored.retrieve("chatcmpl-9")
    await each_installation.part.audit.flush()


async def test_a_dataset_is_an_ordinary_file(installation: Installation) -> None:
    await CapturesService(installation.core).take([capture(number) for number in range(10)])
    async with await installation.http() as http:
        made = (await http.post("/v1/capture_datasets", json={"limit": 10})).json()
        assert (made["object"], made["rows"], made["duplicates"], made["unusable"]) == ("file", 10, 0, 0)
        assert (await http.get(f"/v1/files/{made['id']}")).json()["filename"] == "captures.jsonl"
        assert (await http.post("/v1/capture_datasets")).json()["bytes"] == made["bytes"]
        empty = await http.post("/v1/capture_datasets", json={"model": "unknown"})
        assert (empty.status_code, empty.json()["error"]["code"]) == (400, "no_captures")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/capture_datasets", {"limit": 0}),
        ("POST", "/v1/capture_datasets", {"metadata": {"a": 1}}),
        ("POST", "/v1/capture_datasets", {"unknown": 1}),
        ("POST", "/v1/chat/completions/chatcmpl-1", {}),
        ("GET", "/v1/chat/completions?order=up", None),
        ("GET", "/v1/chat/completions?limit=101", None),
        ("GET", "/v1/chat/completions?model=%00", None),
        ("GET", "/v1/chat/completions/chatcmpl-1/messages?after=no", None),
        ("GET", "/v1/chat/completions/chatcmpl-1/messages?limit=0", None),
        ("GET", "/v1/chat/completions/chatcmpl-1/messages?order=up", None),
    ],
)
async def test_wrong_calls_are_answered(installation: Installation, method: str, path: str, body: Any) -> None:
    await CapturesService(installation.core).take([capture(1)])
    async with await installation.http() as http:
        answer: httpx.Response = await http.request(method, path, json=body)
        assert answer.status_code == 400, answer.text
