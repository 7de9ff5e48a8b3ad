"""Owns how a gateway's report of captures is read: what makes no sense in it is left out, never stored.

It must not know how captures are stored.
"""

from __future__ import annotations

import json
from typing import Any

from tunesmith_proto.registry.v1 import serving_pb2
from tunesmith_server.captures.content import Content
from tunesmith_server.captures.service import NewCapture
from tunesmith_server.metadata import check_metadata
from tunesmith_server.paging import is_id

_MAX_WORD = 255


def read_capture(sent: serving_pb2.Capture) -> NewCapture | None:
    """The capture as it is to be stored; None where it is none."""
    words = (sent.project_id, sent.key_id, sent.request_id, sent.finish_reason, sent.model)
    if not is_id(sent.id) or any(len(word) > _MAX_WORD or "\x00" in word for word in words):
        return None
    try:
        content = Content(_objects(sent.messages), _objects(sent.tools or "[]"), _object(json.loads(sent.answer)))
        metadata = check_metadata(dict(sent.metadata))
    except (ValueError, RecursionError):
        return None
    return NewCapture(
        id=sent.id,
        project_id=sent.project_id,
        key_id=sent.key_id,
        model=sent.model,
        created=sent.created,
        request_id=sent.request_id,
        metadata=metadata,
        finish_reason=sent.finish_reason,
        prompt_tokens=sent.prompt_tokens,
        completion_tokens=sent.completion_tokens,
        content=content,
    )


def _objects(text: str) -> list[dict[str, Any]]:
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError("not a list")  # noqa: TRY004  # as below
    return [_object(each) for each in found]


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004  # what json raises as well, to be caught together
    return value
