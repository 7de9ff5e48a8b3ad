"""Ids are found where they stand in every message, and nothing else is taken for one."""

from __future__ import annotations

import json

import pytest
from google.protobuf.message import Message

from tunesmith_proto.files.v1 import files_pb2
from tunesmith_proto.fine_tunes.v1 import fine_tunes_pb2
from tunesmith_proto.projects.v1 import admin_pb2
from tunesmith_server.audit.targets import id_in, id_in_json


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (files_pb2.DeleteFileRequest(id="file-1"), "file-1"),
        (admin_pb2.DeleteApiKeyRequest(project_id="a", api_key_id="key_1"), "key_1"),
        (fine_tunes_pb2.CreateFineTuneRequest(request_id="idempotency-key"), None),
        (files_pb2.CreateFileResponse(file=files_pb2.File(id="file-1", filename="x")), "file-1"),
        (files_pb2.ListFilesRequest(), None),
    ],
)
def test_ids_in_messages(message: Message, found: str | None) -> None:
    assert id_in(message) == found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (json.dumps({"object": "file", "id": "file-1"}).encode(), "file-1"),
        (b'{"id": 5}', None),
        (b"[]", None),
        (b"", None),
        (b"data: x", None),
        (b'{"id": "x"}' + b" " * 70_000, None),
    ],
)
def test_ids_in_answers(body: bytes, found: str | None) -> None:
    assert id_in_json(body) == found


def test_what_is_no_message_has_none() -> None:
    assert id_in(iter(())) is None
