"""What a gateway reports is read strictly: what makes no sense is left out, whatever it is."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith_proto.registry.v1 import serving_pb2
from tunesmith_server.captures.reports import read_capture

GOOD: dict[str, Any] = {
    "id": "chatcmpl-1",
    "project_id": "default",
    "key_id": "key_1",
    "model": "toy",
    "created": 1,
    "request_id": "req_1",
    "metadata": {"a": "b"},
    "finish_reason": "stop",
    "messages": '[{"role": "user", "content": "a"}]',
    "answer": '{"role": "assistant", "content": "b"}',
}


def test_a_capture_is_read() -> None:
    read = read_capture(serving_pb2.Capture(**GOOD))
    assert read is not None
    assert (read.metadata, read.content.tools, read.content.answer["content"]) == ({"a": "b"}, [], "b")


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "../../etc"},
        {"id": ""},
        {"messages": "{}"},
        {"messages": "[1]"},
        {"messages": "[" * 100_000},
        {"answer": ""},
        {"answer": "[]"},
        {"tools": "5"},
        {"metadata": {"k" * 65: "v"}},
        {"model": "a\0"},
        {"request_id": "r" * 256},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_left_out(changes: dict[str, Any]) -> None:
    assert read_capture(serving_pb2.Capture(**(GOOD | changes))) is None
